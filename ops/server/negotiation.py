"""What a client accepts: media types and content codings by weight (RFC 9110, section 12.5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WEIGHT = re.compile(r"0(\.\d*)?|1(\.0*)?")
_ELEMENT = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*")+')
_PARAMETER = re.compile(r'(?:[^;"]|"(?:\\.|[^"\\])*")+')


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One element of an Accept or Accept-Encoding header."""

    name: str
    """Media range or content coding, in lower case."""
    version: str | None
    """Of a media range; None matches every version."""
    weight: float
    """0..1; 0 refuses what it names."""


@dataclass(frozen=True, kw_only=True)
class MediaType:
    """A format on offer."""

    name: str
    version: str


def preferences(header: str) -> list[Preference]:
    """The elements of a header in their order; malformed ones are left out, as if they had not been sent."""
    found = []
    for element in _ELEMENT.findall(header):
        name, *parameters = (piece.strip() for piece in _PARAMETER.findall(element))
        pairs = {}
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            pairs[key.strip().lower()] = value.strip().strip('"')
        weight = pairs.get("q", "1")
        if name and _WEIGHT.fullmatch(weight):
            found.append(Preference(name=name.lower(), version=pairs.get("version"), weight=float(weight)))
    return found


def choose_media_type(header: str | None, offers: Sequence[MediaType]) -> MediaType | None:
    """The offer of the greatest weight; of equal ones that which the header, then `offers`, names first.

    If the header asks for nothing on offer, the first offer that it does not refuse (weight 0), which the RFC allows;
    None if it refuses every one.
    """
    if not header:
        return offers[0]
    given = preferences(header)
    matches = [(offer, _match(offer, given)) for offer in offers]
    wanted = [(offer, index) for offer, index in matches if index is not None and given[index].weight > 0]
    if wanted:
        return min(wanted, key=lambda pair: (-given[pair[1]].weight, pair[1]))[0]
    return next((offer for offer, index in matches if index is None), None)


def _match(offer: MediaType, given: Sequence[Preference]) -> int | None:
    """The index of the most specific element that covers the offer; of equal ones the first."""
    specific = {offer.name: 2, offer.name.partition("/")[0] + "/*": 1, "*/*": 0}
    covering = [
        ((specific[element.name], element.version is not None), -index)
        for index, element in enumerate(given)
        if element.name in specific and element.version in (None, offer.version)
    ]
    return -max(covering)[1] if covering else None


def choose_coding(header: str | None) -> str | None:
    """ "gzip" or "identity", gzip if both are as welcome; None if the header refuses both."""
    if header is None:
        return "identity"
    weights = {}
    for element in preferences(header):
        weights.setdefault({"x-gzip": "gzip"}.get(element.name, element.name), element.weight)
    rest = weights.get("*")
    gzip = weights.get("gzip", rest or 0.0)
    # Without an element of its own, identity is welcome unless the rest is refused.
    identity = weights.get("identity", 0.0 if rest == 0 else gzip or 1.0)
    if gzip and gzip >= identity:
        return "gzip"
    return "identity" if identity else None
