"""A stored answer with its usage set to 0: the text is edited in place, never encoded anew."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from cachesvc.dialects import sse
from cachesvc.dialects.reading import JSON, STREAM, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Places = tuple[tuple[str, ...], ...]
"""Where usage objects stand: names of members from the top, the last of them "usage"."""

_TOP: Places = (("usage",),)
_SPACE = re.compile(r"[ \t\n\r]*")
# Strings are matched, too, so that what looks like a number inside one is passed over.
_STRING_OR_NUMBER = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?[0-9][0-9.eE+-]*')


def without_usage(media_type: str, body: bytes, in_events: Places = _TOP) -> bytes:
    """`body` with each number of its usage set to 0, all other bytes kept.

    A JSON answer has its usage at the top, the data of an event at `in_events`. What cannot be
    read stays as it is. Takes time linear to the length.
    """
    kind = kind_of(media_type)
    if kind == JSON:
        return _zeroed(body, _TOP)
    if kind == STREAM:
        return sse.with_data(body, lambda data: _zeroed(data, in_events))
    return body


def _zeroed(text: bytes, places: Places) -> bytes:
    # The name may be written with escapes; without them it stands there as it is.
    if b"usage" not in text and b"\\u" not in text:
        return text
    try:
        decoded = text.decode("utf-8")
        spans = _usage_spans(decoded, places)
    except (ValueError, RecursionError):
        return text
    pieces, done = [], 0
    for start, end in spans:
        pieces += [decoded[done:start], _STRING_OR_NUMBER.sub(_zero, decoded[start:end])]
        done = end
    return "".join([*pieces, decoded[done:]]).encode("utf-8")


def _zero(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else "0"


def _usage_spans(text: str, places: Places) -> list[tuple[int, int]]:
    """Where the usage objects of one JSON text stand. Raises ValueError for what is no JSON."""
    start = _next(text, 0)
    _, end = _DECODER.raw_decode(text, start)
    if _next(text, end) != len(text):
        raise ValueError("trailing data")
    return list(_spans(text, start, places))


def _spans(text: str, at: int, places: Places) -> Iterator[tuple[int, int]]:
    """Those in the value that begins at `at`. A name that is repeated counts each time."""
    for name, start, end in _members(text, at):
        deeper = tuple(place[1:] for place in places if place[0] == name)
        if () in deeper and text[start] == "{":
            yield start, end
        elif deeper and () not in deeper:
            yield from _spans(text, start, deeper)


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each member of the object at `at`, in a text known to be JSON."""
    if text[at] != "{":
        return
    at = _next(text, at + 1)
    while text[at] != "}":
        name, end = _DECODER.raw_decode(text, at)
        start = _next(text, _next(text, end) + 1)
        _, end = _DECODER.raw_decode(text, start)
        yield name, start, end
        at = _next(text, end)
        if text[at] == ",":
            at = _next(text, at + 1)


def _next(text: str, at: int) -> int:
    """The first place from `at` on that is no white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


# Nothing is made of the values, so integers may be of any length; int() has a bound.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=_refuse)
