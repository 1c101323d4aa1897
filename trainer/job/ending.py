"""The end of a run as Prometheus sees it: exit code and reason, and time to read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ops.server import Server
from pipeline.errors import InputError
from pipeline.shards import write_atomically
from trainer.job.observer import Outlets
from trainer.job.run_directory import TEXTFILE
from trainer.loop import Stop


@contextmanager
def end_exported(outlets: Outlets) -> Iterator[None]:
    """Within it an error that ends the run sets exit code and reason on its way out, and RUN/metrics.prom has them."""
    try:
        yield
    except Exception as error:
        outlets.metrics.exit(*exit_of(error))
        write_textfile(outlets)
        raise


def exit_of(end: Stop | Exception) -> tuple[int, str]:
    """Exit code and reason, one of `ops.series.EXIT_REASONS`, of a run that stopped or failed so."""
    match end:
        case Stop():
            return end.exit_code, end.name.lower()
        case InputError():
            return 2, "input"
        case OSError():
            return 74, "io"
    return 1, "error"


def export_earlier_end(outlets: Outlets, end: Stop) -> None:
    """Code and reason of a run that had ended before; in RUN/metrics.prom too, if there was no room for it then."""
    outlets.metrics.exit(*exit_of(end))
    if not (outlets.directory.path / TEXTFILE).exists():
        write_textfile(outlets)


def write_textfile(outlets: Outlets) -> None:
    """RUN/metrics.prom: every series as it is now, for node_exporter's textfile collector and for people.

    It is written whole or not at all; one that an earlier process left goes first where there is no room for both, and
    does not outlive what it tells. One that cannot be written is warned of; the run is whole without it.
    """
    if not outlets.directory.writes:
        return
    path, content = outlets.directory.path / TEXTFILE, outlets.metrics.exposition().encode()
    try:
        try:
            write_atomically(path, content)
        except OSError:
            path.unlink(missing_ok=True)
            write_atomically(path, content)
    except OSError as error:
        outlets.console.warn(f"{path}: could not be written ({error.strerror or error}); the run is whole without it")


@contextmanager
def last_scrape_awaited(server: Server, outlets: Outlets, *, at_most_seconds: float) -> Iterator[None]:
    """Behind it /metrics stays open until the end has been read, if somebody reads at intervals; `/readyz` says 503.

    A run that nobody scrapes, and one whose next scrape is not due in time, ends at once; so does one that is asked
    twice to stop (KeyboardInterrupt).
    """
    try:
        yield
    except Exception:
        _await_last_scrape(server, outlets, at_most_seconds)
        raise
    _await_last_scrape(server, outlets, at_most_seconds)


def _await_last_scrape(server: Server, outlets: Outlets, at_most_seconds: float) -> None:
    server.mark_ready(False)
    seconds = server.last_scrape_due(at_most_seconds)
    if seconds > 0:
        outlets.console.say(f"waiting for the end to be scraped, {seconds:.0f} s at most (metrics.last_scrape_seconds)")
        with suppress(KeyboardInterrupt):  # everything is saved and said
            server.wait_for_scrape(seconds)
