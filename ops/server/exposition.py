"""The text of /metrics: the format and coding that the client prefers, and a registry written in it."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Metric as MetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from ops.server.negotiation import MediaType, choose_coding, choose_media_type

PLAIN_TEXT = MediaType(name="text/plain", version="0.0.4")
OPENMETRICS = MediaType(name="application/openmetrics-text", version="1.0.0")


@dataclass(frozen=True, kw_only=True)
class Exposition:
    """The body of an answer and the headers that describe it."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


def expose(
    registry: CollectorRegistry, *, accept: str | None, accept_encoding: str | None, names: Sequence[str] = ()
) -> Exposition | None:
    """The registry (only the series `names`, if any) as the two request headers want it; None if they refuse all forms.

    Prometheus' plain format unless OpenMetrics is preferred; gzip only if it is accepted.
    """
    media_type, coding = choose_media_type(accept, (PLAIN_TEXT, OPENMETRICS)), choose_coding(accept_encoding)
    if media_type is None or coding is None:
        return None
    chosen = registry.restricted_registry(names) if names else registry
    body = openmetrics(chosen.collect()) if media_type is OPENMETRICS else generate_latest(chosen)  # pyright: ignore[reportArgumentType]
    headers = [
        ("Content-Type", f"{media_type.name}; version={media_type.version}; charset=utf-8"),
        ("Vary", "Accept, Accept-Encoding"),
    ]
    if coding == "gzip":
        body = gzip.compress(body, mtime=0)
        headers.append(("Content-Encoding", "gzip"))
    return Exposition(body=body, headers=tuple(headers))


def openmetrics(families: Iterable[MetricFamily]) -> bytes:
    """The families as OpenMetrics text.

    A histogram with a bound below zero has no `_sum` there, and so may have no `_count` either: its +Inf bucket holds
    the same number.
    """
    return generate_openmetrics(_Strict(families))


class _Strict:
    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[MetricFamily]:
        for family in self._families:
            names = {sample.name for sample in family.samples}
            if family.type == "histogram" and f"{family.name}_sum" not in names:
                family.samples = [sample for sample in family.samples if sample.name != f"{family.name}_count"]
            yield family
