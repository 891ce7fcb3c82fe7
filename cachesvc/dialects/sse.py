"""Server-sent events, split as they come (WHATWG HTML, 9.2.6 "Interpreting an event stream")."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")


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
            if b"\xef\xbb\xbf".startswith(self._rest):
                return []
            self._rest = self._rest.removeprefix(b"\xef\xbb\xbf")
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
