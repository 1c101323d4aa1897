"""The order that names give to files: by the numbers and months in them, or an error for names that leave it open."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pipeline.errors import InputError

_MONTHS = {
    word: number
    for number, words in enumerate(
        (
            "jan january januar janvier enero gennaio janeiro ene gen janv",
            "feb february februar fevrier febrero febbraio fevereiro fev febr fevr",
            "mar march marz mars marzo marco mrz maerz",
            "apr april avril abril aprile avr abr",
            "may mai mayo maggio maio mag",
            "jun june juni juin junio giugno junho giu",
            "jul july juli juillet julio luglio julho lug juil",
            "aug august aout agosto ago",
            "sep sept september septembre septiembre settembre setembro set",
            "oct october oktober octobre octubre ottobre outubro okt ott out",
            "nov november novembre noviembre novembro",
            "dec december dezember decembre diciembre dicembre dezembro dez dic",
        ),
        1,
    )
    for word in words.split()
}
_UNORDERED = (
    ("days of the week", "mon tue wed thu fri sat sun tues thur thurs monday tuesday wednesday thursday friday "
     "saturday sunday montag dienstag mittwoch donnerstag freitag samstag sonntag lundi mardi mercredi jeudi vendredi "
     "samedi dimanche"),
    ("number words", "zero one two three four five six seven eight nine ten eleven twelve first second third fourth "
     "fifth sixth seventh eighth ninth tenth last"),
    ("names of splits", "train training tr val valid validation dev eval test testing holdout"),
    ("words for time", "old new before after yesterday today tomorrow previous current next early late morning noon "
     "afternoon evening night spring summer autumn fall winter"),
)  # fmt: skip
"""Words whose order in the alphabet is not their order in time."""
_ROMAN = re.compile(r"m{0,3}(cm|cd|d?c{0,3})(xc|xl|l?x{0,3})(ix|iv|v?i{0,3})")
_YEARS = range(1970, 2070)
_SHORT_YEARS = range(31)
"""Two digits that may stand for a year, where a day or a month is possible too."""


class _Token(NamedTuple):
    """A run of digits or of letters in a name."""

    text: str
    before: str
    """What stands between the token before and this one."""

    @property
    def is_number(self) -> bool:
        return self.text.isdecimal()

    @property
    def key(self) -> tuple[int, int, str]:
        return (1, int(self.text), "") if self.is_number else (0, 0, self.text)


Key = tuple[tuple[int, int, str], ...]


def in_natural_order(names: Iterable[str], *, where: str, endings: Sequence[str] = ()) -> list[str]:
    """`names` sorted by the numbers (day_2 before day_10), dates and months in them, else by the alphabet.

    `endings` (".gz") take no part in the order, and neither do capitals, accents and separators.
    Raises: InputError that begins with `where` if the names can be read in more than one order: days before months,
    a year at the end, two names for one number, days of the week, number words, names that follow no one pattern.
    """
    tokens = {name: _tokens(name, endings) for name in names}
    if len(tokens) < 2:
        return list(tokens)
    try:
        return _sorted(tokens)
    except _AmbiguousError as error:
        raise InputError(f"{where}: the names leave the order of the files open ({error}); {_REMEDY}") from None


_REMEDY = "name the files one by one, in the order of time"


class _AmbiguousError(Exception):
    """Why names have no certain order."""


def _sorted(tokens: dict[str, list[_Token]]) -> list[str]:
    _refuse_rotated(list(tokens))
    tokens, months, unordered = _with_month_numbers(tokens)
    readings = _readings(list(tokens.values()), months)
    ordered, *others = (sorted(tokens, key=lambda name, read=read: read(tokens[name])) for read in readings)
    for other in others:
        for first, second in zip(ordered, other, strict=True):
            if first != second:
                raise _AmbiguousError(f"{first} and {second}: which number is the day, the month or the year?")
    for first, second in itertools.pairwise(ordered):
        _check_neighbours(first, second, tokens[first], tokens[second], unordered)
    return ordered


def _tokens(name: str, endings: Sequence[str]) -> list[_Token]:
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    while ending := next((ending for ending in endings if ending and plain.endswith(ending)), None):
        plain = plain.removesuffix(ending)
    found, stop = [], 0
    for match in re.finditer(r"\d+|[^\W\d_]+", plain):
        found.append(_Token(match[0], plain[stop : match.start()]))
        stop = match.end()
    return found


def _refuse_rotated(names: list[str]) -> None:
    rotated = [name for name in names if re.search(r"\.log[.-]\d{1,3}(\.[A-Za-z]\w*)?$", name)]
    if len(rotated) > 1 or (rotated and len(names) > 1):
        raise _AmbiguousError(f"{rotated[0]}: rotated logs count backwards in time")


def _with_month_numbers(
    tokens: dict[str, list[_Token]],
) -> tuple[dict[str, list[_Token]], list[int], dict[int, str]]:
    """Names of months replaced by their numbers if every name has one, and at which places; and the places of words
    that the alphabet puts into an order other than that of time, with the reason.

    Raises: _AmbiguousError for months around the turn of a year that nobody names, and for halves of a day.
    """
    months: list[int] = []
    unordered: dict[int, str] = {}
    for place in range(min(map(len, tokens.values()))):
        words = {each[place].text for each in tokens.values()}
        if any(word.isdecimal() for word in words):
            continue
        if len(words) == 1:
            months += [place] if words <= _MONTHS.keys() and _between_numbers(tokens, place) else []
            continue
        named = {_MONTHS[word] for word in words & _MONTHS.keys()}
        if len(named) > 1 and words <= _MONTHS.keys():
            _refuse_turn_of_the_year(tokens, place, named)
            months.append(place)
            continue
        if len(named) > 1:
            unordered[place] = f"{min(words - _MONTHS.keys())!r} among names of months"
        for what, vocabulary in _UNORDERED:
            if len(known := words & set(vocabulary.split())) > 1:
                unordered[place] = f"{what}: {', '.join(sorted(known)[:3])}"
        if all(_ROMAN.fullmatch(word) for word in words) and max(map(len, words)) > 1:
            unordered[place] = f"Roman numbers: {', '.join(sorted(words)[:3])}"
        if words == {"am", "pm"}:
            raise _AmbiguousError("halves of a day: am, pm")
    for each in tokens.values() if months else ():
        for place in months:
            each[place] = _Token(str(_MONTHS[each[place].text]), each[place].before)
    return tokens, months, unordered


def _between_numbers(tokens: dict[str, list[_Token]], place: int) -> bool:
    """Whether every name has a number before and one after its token at `place`."""
    return place > 0 and all(
        len(each) > place + 1 and each[place - 1].is_number and each[place + 1].is_number for each in tokens.values()
    )


def _refuse_turn_of_the_year(tokens: dict[str, list[_Token]], place: int, months: set[int]) -> None:
    dated = all(any(_is_year(token) for token in each) for each in tokens.values())
    if not dated and {1, 12} <= months and len(months) < 12:
        raise _AmbiguousError("December and January without a year: which comes first?")


def _is_year(token: _Token) -> bool:
    return token.is_number and len(token.text) == 4 and int(token.text) in _YEARS


Reading = Callable[[list[_Token]], Key]


def _readings(names: list[list[_Token]], months: list[int]) -> list[Reading]:
    """Keys to sort by, one for each way in which all the names can be read; the natural one first."""
    natural: Reading = lambda tokens: tuple(token.key for token in tokens)  # noqa: E731
    if len({tuple(token.is_number for token in name) for name in names}) > 1:
        return [natural]
    varying = [
        place
        for place, column in enumerate(zip(*names, strict=True))
        if column[0].is_number and len({int(token.text) for token in column}) > 1
    ]
    columns = {place: [name[place] for name in names] for place in range(len(names[0]))}
    years = [place for place, column in columns.items() if all(map(_is_year, column))]
    if months:
        return _readings_with_months(natural, columns, varying, years, months[0])
    readings: list[Reading] = [natural]
    if len(varying) > 1 and years and varying[0] < years[0] and years[0] in varying:
        before = [place for place in varying if place < years[0]]
        readings += [_places_first([years[0], *before]), _places_first([years[0], *reversed(before)])]
    if years and _is_day_and_month(columns, years[0]):
        readings.append(_places_first([years[0], years[0] - 1, years[0] - 2]))
    if not years:
        readings += _short_dates(columns)
    for place in varying:
        readings += [_dates_first(place, year, month, day) for year, month, day in _packed_dates(columns[place])]
    return readings


def _readings_with_months(
    natural: Reading, columns: dict[int, list[_Token]], varying: list[int], years: list[int], month: int
) -> list[Reading]:
    if years:
        return [_places_first([years[0], month])]
    numbers = [place for place in varying if abs(place - month) == 1]
    may_be_years = [place for place in numbers if all(len(token.text) == 2 for token in columns[place])]
    return [_places_first([month]), *(_places_first([place, month]) for place in may_be_years)]


def _is_day_and_month(columns: dict[int, list[_Token]], year: int) -> bool:
    """Whether two numbers that may be a day and a month stand before the year."""
    if year < 2 or not (columns[year - 2][0].is_number and columns[year - 1][0].is_number):
        return False
    return _are_days(_values(columns[year - 2])) and _are_months(_values(columns[year - 1]))


def _places_first(places: list[int]) -> Reading:
    """Compare the tokens at `places` first, then the others in order."""

    def read(tokens: list[_Token]) -> Key:
        others = (token.key for place, token in enumerate(tokens) if place not in places)
        return (*(tokens[place].key for place in places), *others)

    return read


def _short_dates(columns: dict[int, list[_Token]]) -> list[Reading]:
    """Two or three neighbouring numbers of two digits that may be a date without its century: 31-12, 31.12.13."""
    readings: list[Reading] = []
    padded = [
        column[0].is_number and all(len(token.text) == 2 and token.before == column[0].before for token in column)
        for column in columns.values()
    ]
    for place in range(len(columns) - 1):
        three = place + 2 < len(columns) and padded[place + 2] and columns[place + 2][0].before in tuple("-._ ")
        if not (padded[place] and padded[place + 1] and columns[place + 1][0].before in tuple("-._ ")):
            continue
        first, second = (_values(columns[place + i]) for i in range(2))
        if three and all(value in _SHORT_YEARS for value in _values(columns[place + 2])):
            if _are_days(first) and _are_months(second):
                readings.append(_places_first([place + 2, place + 1, place]))
            if _are_months(first) and _are_days(second):
                readings.append(_places_first([place + 2, place, place + 1]))
        if not three and _are_days(first) and _are_months(second):
            readings.append(_places_first([place + 1, place]))
        break
    return readings


def _values(column: list[_Token]) -> list[int]:
    return [int(token.text) for token in column]


def _are_days(values: list[int]) -> bool:
    return all(1 <= value <= 31 for value in values)


def _are_months(values: list[int]) -> bool:
    return all(1 <= value <= 12 for value in values)


def _packed_dates(column: list[_Token]) -> list[tuple[slice, slice, slice]]:
    """Where year, month and day lie in numbers like 31122013, 311213 or 122013, for each way that fits all of them."""
    digits = {len(token.text) for token in column}
    texts = [token.text for token in column]
    if digits == {8} and not _fits(texts, slice(0, 4), slice(4, 6), slice(6, 8)):
        ways = [(slice(4, 8), slice(2, 4), slice(0, 2)), (slice(4, 8), slice(0, 2), slice(2, 4))]
    elif digits == {6} and not _fits(texts, slice(0, 4), slice(4, 6), slice(0, 0)):
        short = slice(4, 6)
        ways = [(short, slice(2, 4), slice(0, 2)), (short, slice(0, 2), slice(2, 4))]
        ways.append((slice(2, 6), slice(0, 2), slice(0, 0)))
    else:
        ways = []
    return [way for way in ways if _fits(texts, *way)]


def _fits(texts: list[str], year: slice, month: slice, day: slice) -> bool:
    years = _YEARS if year.stop - year.start == 4 else _SHORT_YEARS
    return (
        all(int(text[year]) in years for text in texts)
        and _are_months([int(text[month]) for text in texts])
        and _are_days([int(text[day] or 1) for text in texts])
    )


def _dates_first(place: int, year: slice, month: slice, day: slice) -> Reading:
    def read(tokens: list[_Token]) -> Key:
        text = tokens[place].text
        date = tuple((1, int(text[part] or 0), "") for part in (year, month, day))
        before, after = tokens[:place], tokens[place + 1 :]
        return (*(token.key for token in before), *date, *(token.key for token in after))

    return read


def _check_neighbours(
    first: str, second: str, left: list[_Token], right: list[_Token], unordered: dict[int, str]
) -> None:
    """Raises: _AmbiguousError if two names that follow one another differ first in something other than a number, or
    a word that the alphabet orders."""
    for place, (a, b) in enumerate(itertools.zip_longest(left, right)):
        if a is None or b is None or a.is_number != b.is_number:
            raise _AmbiguousError(f"{first} and {second} do not follow one pattern")
        if a.key != b.key:
            if place in unordered:
                raise _AmbiguousError(unordered[place])
            if a.is_number and _sign(a) != _sign(b):
                raise _AmbiguousError(f"{first} and {second}: is - a sign or a separator?")
            return
    raise _AmbiguousError(f"{first} and {second} stand for the same place: one log twice?")


def _sign(token: _Token) -> bool:
    return len(token.before) > 1 and token.before.endswith("-")
