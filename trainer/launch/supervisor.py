"""Starts all ranks, waits for their end, and decides whether they start again and with which code the run ends."""

from __future__ import annotations

import math
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from trainer.console import Console
from trainer.launch.environment import Meeting, rank_environment, threads_of_a_rank
from trainer.launch.rank_log import RankLog
from trainer.launch.rank_process import RankProcess
from trainer.process import EXIT_INTERRUPTED, STOPS, relayed_signals

POLL_SECONDS = 0.05
LEAVE_SECONDS = 5.0
"""From the second signal that asks to stop to the end of whoever is still there."""
EXIT_IO = 74
FINAL = (0, 2, 3, EXIT_INTERRUPTED)
"""Done, bad input, diverged, stopped: no start after these ends otherwise."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How many ranks, and how much patience with them."""

    ranks: int
    max_restarts: int = 3
    """How often all of them start again after one was lost; as with torchrun, of the whole launch."""
    grace_seconds: float = 600.0
    """From a signal that asks to stop to the kill of ranks that have not ended: one step, and the last save."""
    peer_seconds: float = 60.0
    """From the end of one rank by a fault to the kill of those that have not ended: to save, if they can, and to say
    why they end."""
    ending_seconds: float = 600.0
    """From the end of the first rank that is done to the kill of those that do not end: rank 0 has the last to do."""
    retry_seconds: float = 60.0
    """Between an I/O failure and the next start; other losses are no reason to wait."""

    def __post_init__(self) -> None:
        for name, least in (("ranks", 1), ("max_restarts", 0), ("grace_seconds", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give {least} or more")


class LostRank(NamedTuple):
    """The rank that ended first, of those that did not end well."""

    rank: int
    code: int
    """As the process gave it: negative for a signal."""

    @property
    def exit_code(self) -> int:
        """As a shell counts it; that of a stop where a signal that asks for one met a process that heard none yet."""
        if -self.code in STOPS:
            return EXIT_INTERRUPTED
        return self.code if self.code >= 0 else 128 - self.code

    def __str__(self) -> str:
        if self.code >= 0:
            return f"rank {self.rank} ended with code {self.code}"
        try:
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"rank {self.rank} was killed by signal {-self.code}"


def _severity(loss: LostRank) -> tuple[int, int]:
    """Of several that are found at once, the likelier cause first: a kill, a crash, then what ranks agree on."""
    order = (1, EXIT_IO, 3, 2, EXIT_INTERRUPTED)
    code = loss.exit_code
    return (order.index(code) if code in order else -1, loss.rank)


@dataclass
class _Orders:
    """What signals have asked for since the launch."""

    heard: queue.SimpleQueue[signal.Signals] = field(default_factory=queue.SimpleQueue)
    stops: int = 0
    leave_at: float = math.inf
    """When those that are still there are killed."""
    obeyed_late: bool = False
    """Whether that had to be done."""


def launch(
    command: Callable[[int], Sequence[str]],
    config: LaunchConfig,
    *,
    run: Path,
    console: Console,
    meet: Callable[[], Meeting] = Meeting,
) -> int:
    """Runs `command(attempt)`, from attempt 0, as every rank of one run; the run's exit code.

    0, 2, 3 and 143 are final. After anything else all ranks start again, up to `max_restarts` times, and go on from the
    run's newest checkpoint; then it is the code of the rank that was lost first, 128 + n for a kill by signal n.
    Signals are passed on to every rank: the first that asks to stop ends the launch once the ranks have ended, with
    143 if they say so; the second kills what has not ended some seconds later. Of ranks other than 0, what they write
    goes to RUN/ranks, and is shown where one is lost. `meet` serves the store that they find one another by.
    """
    orders = _Orders()
    logs = [RankLog(run / "ranks" / f"rank-{rank}.log", begun=partial(_begun, run)) for rank in range(1, config.ranks)]
    threads = threads_of_a_rank(config.ranks)
    shared = "as OMP_NUM_THREADS says" if threads is None else f"{threads} each; OMP_NUM_THREADS sets another number"
    console.say(f"{config.ranks} ranks on this machine, threads {shared}")
    with relayed_signals(orders.heard.put):
        for attempt in range(config.max_restarts + 1):
            with meet() as meeting:  # a store of its own: ranks would find what those before have left in it
                environment = partial(
                    rank_environment,
                    ranks=config.ranks,
                    port=meeting.port,
                    attempt=attempt,
                    max_restarts=config.max_restarts,
                )
                processes = _Processes(command(attempt), environment, [None, *logs])
                lost = _one_round(processes, config, orders, console)
            if lost is None:
                return 0
            if orders.obeyed_late:
                return EXIT_INTERRUPTED
            code = lost.exit_code
            if code in FINAL or orders.stops:
                return code
            if attempt < config.max_restarts:
                wait = config.retry_seconds if code == EXIT_IO else 0.0
                console.warn(
                    f"{lost}; all {config.ranks} start again{f' in {wait:.0f} s' if wait else ''} from the newest "
                    f"checkpoint (restart {attempt + 1} of {config.max_restarts})"
                )
                if _told_to_stop_within(wait, orders):
                    console.say("stopped before the ranks started again; run the same command again to continue")
                    return EXIT_INTERRUPTED
        console.warn(f"{lost}; no restart is left of {config.max_restarts}; run the same command again to continue")
        return code


def _begun(run: Path) -> bool:
    """Whether a run is there: before, its folder may be somebody else's."""
    return (run / "config.toml").is_file() and (run / "lock").exists()


class _Processes(NamedTuple):
    """What the ranks of one attempt are started with."""

    command: Sequence[str]
    environment: Callable[[int], dict[str, str]]
    logs: Sequence[RankLog | None]


def _one_round(what: _Processes, config: LaunchConfig, orders: _Orders, console: Console) -> LostRank | None:
    """From the start of all ranks to the end of the last; the one that ended first other than with 0."""
    with ExitStack() as stack:
        processes = list[RankProcess]()
        for rank, log in enumerate(what.logs):
            processes.append(RankProcess(rank, what.command, what.environment(rank), log=log))
            stack.callback(processes[-1].close)
            stack.callback(processes[-1].kill)
        lost, codes = _until_all_end(processes, config, orders, console)
    if lost is not None:
        _show_last_lines(lost, codes, what.logs, console)
    return lost


def _until_all_end(
    processes: Sequence[RankProcess], config: LaunchConfig, orders: _Orders, console: Console
) -> tuple[LostRank | None, list[int]]:
    first: LostRank | None = None
    faulty_until = math.inf
    while True:
        codes = [process.code() for process in processes]
        ended = [LostRank(rank, code) for rank, code in enumerate(codes) if code]
        if first is None and ended:
            first = min(ended, key=_severity)
            stopped = first.exit_code == EXIT_INTERRUPTED
            faulty_until = time.monotonic() + (config.grace_seconds if stopped else config.peer_seconds)
            if stopped and not orders.stops:  # the others may not have heard of it
                _pass_on(signal.SIGTERM, processes)
        elif first is None and 0 in codes and faulty_until == math.inf:  # all ends together, or something is wrong
            faulty_until = time.monotonic() + config.ending_seconds
        if None not in codes:
            return first, [code for code in codes if code is not None]
        if time.monotonic() > min(orders.leave_at, faulty_until):
            late = time.monotonic() > orders.leave_at
            names = ", ".join(str(process.rank) for process in processes if process.code() is None)
            console.warn(
                f"rank {names}: killed, as it had not ended {'in time' if late or first is None else f'after {first}'}"
            )
            for process in processes:
                process.kill()
            orders.obeyed_late = orders.obeyed_late or late
            orders.leave_at = faulty_until = math.inf
        for number in _heard(orders, POLL_SECONDS):
            _obey(number, processes, config, orders, console)


def _obey(
    number: signal.Signals,
    processes: Sequence[RankProcess],
    config: LaunchConfig,
    orders: _Orders,
    console: Console,
) -> None:
    if number not in STOPS:
        _pass_on(number, processes)
        return
    orders.stops += 1
    if orders.stops == 1:
        orders.leave_at = time.monotonic() + config.grace_seconds
        _pass_on(number, processes)
    elif number != signal.SIGXCPU:  # which the kernel sends over and over
        orders.leave_at = min(orders.leave_at, time.monotonic() + LEAVE_SECONDS)
        console.say(f"{number.name}: leaving within {LEAVE_SECONDS:.0f} s, saved or not")


def _pass_on(number: signal.Signals, processes: Sequence[RankProcess]) -> None:
    for process in processes:
        process.send(number)


def _heard(orders: _Orders, seconds: float) -> list[signal.Signals]:
    """The next signal, within so many seconds, and those that have come with it."""
    found = list[signal.Signals]()
    try:
        found.append(orders.heard.get(timeout=seconds))
        while True:
            found.append(orders.heard.get_nowait())
    except queue.Empty:
        return found


def _told_to_stop_within(seconds: float, orders: _Orders) -> bool:
    """Waits; whether it is told to stop meanwhile. Nobody is there to save or to show where it stands."""
    end = time.monotonic() + seconds
    while True:
        for number in _heard(orders, min(max(end - time.monotonic(), 0.0), POLL_SECONDS)):
            orders.stops += number in STOPS
        if orders.stops or time.monotonic() >= end:
            return orders.stops > 0


def _show_last_lines(lost: LostRank, codes: Sequence[int], logs: Sequence[RankLog | None], console: Console) -> None:
    """Those of the rank that was lost, unless rank 0 has said the same: it ended with the same code of its own."""
    log = logs[lost.rank]
    if log is None or (lost.code >= 0 and codes[0] == lost.code) or lost.exit_code == EXIT_INTERRUPTED:
        return
    for line in log.tail():
        console.say(f"rank {lost.rank}: {line}")
    if log.path.is_file():
        console.say(f"rank {lost.rank}: more in {os.fspath(log.path)}")
