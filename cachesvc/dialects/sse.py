"""Server-sent events, split as they come (WHATWG HTML, 9.2.6 "Interpreting an event stream")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_LINE_AND_END = re.compile(rb"(\r\n|\n|\r)")
_DATA = re.compile(rb"data(?:: ?|\Z)")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `name` is "message" where the stream names none; `data` lines are joined by LF."""

    name: str
    data: bytes


class Splitter:
    """Feed bytes in pieces of any size, get the events they complete.

    The events do not depend on where the pieces were cut.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._name = b""
        self._data: list[bytes] = []
        self._fields = False  # a field has come since the last blank line
        self._first = True

    @property
    def at_boundary(self) -> bool:
        """Nothing has begun that a blank line has not ended; a comment begins nothing."""
        return self._rest in (b"", b"\r") and not self._fields

    def feed(self, piece: bytes) -> list[Event]:
        """The events that `piece` completes."""
        self._rest += piece
        if self._first and self._rest:
            if _BOM.startswith(self._rest):
                return []
            self._rest = self._rest.removeprefix(_BOM)
            self._first = False
        events, start = [], 0
        for end in _LINE_END.finditer(self._rest):
            # A CR at the very end may be the first half of a CRLF.
            if end.group() == b"\r" and end.end() == len(self._rest):
                break
            event = self._line(self._rest[start : end.start()])
            if event is not None:
                events.append(event)
            start = end.end()
        self._rest = self._rest[start:]
        return events

    def finish(self) -> list[Event]:
        """The stream has ended: a CR that was held back is a line end after all."""
        return self.feed(b"\n") if self._rest.endswith(b"\r") else []

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        if line.startswith(b":"):
            return None
        self._fields = True
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        return None

    def _dispatch(self) -> Event | None:
        name, data, had_fields = self._name, self._data, self._fields
        self._name, self._data, self._fields = b"", [], False
        # The browser's algorithm drops an event without data; a named one still says that
        # something came, so it is kept for the judge of completeness.
        if not had_fields or (not data and not name):
            return None
        return Event(name.decode("utf-8", "replace") or "message", b"\n".join(data))


def split(body: bytes) -> list[Event] | None:
    """All events of a whole stream, or None when it does not end on a frame boundary."""
    splitter = Splitter()
    events = splitter.feed(body) + splitter.finish()
    return events if splitter.at_boundary else None


def with_data(body: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    """`body` with `edit` made to the data of each event, and all other bytes as they are.

    `edit` must keep the line feeds of data that came in several lines, or it is not followed.
    """
    parts = _LINE_AND_END.split(body)  # lines at even places, their ends between them
    heads: list[tuple[int, bytes]] = []  # of the event's data lines: the place, what is no data
    datas: list[bytes] = []
    for place in range(0, len(parts) - 1, 2):
        line = parts[place]
        if not line:
            _edit(parts, heads, datas, edit)
            heads, datas = [], []
            continue
        head = _DATA.match(line, 3 if place == 0 and line.startswith(_BOM) else 0)
        if head is not None:
            heads.append((place, line[: head.end()]))
            datas.append(line[head.end() :])
    return b"".join(parts)


def _edit(
    parts: list[bytes],
    heads: list[tuple[int, bytes]],
    datas: list[bytes],
    edit: Callable[[bytes], bytes],
) -> None:
    edited = edit(b"\n".join(datas)).split(b"\n") if datas else []
    if len(edited) == len(heads) and edited != datas:
        for (place, head), data in zip(heads, edited, strict=True):
            parts[place] = head + data
