"""A side copy of an answer, and what it turns out to be. Nothing here touches the caller."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cachesvc.core.admission import Captured, Reading, admit
from cachesvc.dialects import sse
from cachesvc.proxy.decoding import CutOff, Oversize, Undecodable, decoded

if TYPE_CHECKING:
    from cachesvc.core.model import Reason
    from cachesvc.core.policy import Policy
    from cachesvc.dialects.base import Dialect
    from cachesvc.proxy.request import RawHeaders

_OK = 200
BODILESS = (204, 304)
_MAX_MEDIA_TYPE = 256


class Incoming(Protocol):
    """The head of an upstream's answer, however it is called.

    `framed`: where its body ends is told by something other than the connection's end.
    """

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> RawHeaders: ...

    @property
    def framed(self) -> bool: ...

    def values(self, name: bytes) -> list[str]:
        """The values of one header, lower-case `name`, in order (latin-1)."""


def is_framed(status: int, headers: RawHeaders) -> bool:
    """Whether a body's end is told by its head (RFC 9112, 6.3), else by the connection's."""
    names = {name.lower() for name, _ in headers}
    return status in BODILESS or bool(names & {b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Sealed:
    """A captured answer that has been looked at: `refusal` is None when it may be kept."""

    media_type: str
    body: bytes
    reading: Reading
    refusal: Reason | None


class Capture:
    """Collects the bytes of one answer, up to the policy's cap."""

    def __init__(self, upstream: Incoming, dialect: Dialect, policy: Policy) -> None:
        self._status = upstream.status
        self._codings = upstream.values(b"content-encoding")
        media_types = upstream.values(b"content-type")
        self._media_type = media_types[0] if len(media_types) == 1 else ""
        self._dialect = dialect
        self._policy = policy
        self._pieces: list[bytes] = []
        self._oversize = False
        self.size = 0

    @property
    def coded(self) -> bool:
        """Looking at it costs more than its size tells."""
        return bool(self._codings)

    def feed(self, piece: bytes) -> None:
        """The next bytes, as they came."""
        if self._status != _OK or self._oversize:
            return
        self._pieces.append(piece)
        self.size += len(piece)
        if self.size > self._policy.max_body_bytes:
            self._oversize = True
            self._pieces.clear()
            self.size = 0

    def seal(self) -> Sealed:
        """What the answer is, now that it has ended cleanly. Pure, and slow for large answers."""
        captured = self._captured()
        reading = None
        if captured.body is not None and captured.clean:
            reading = self._dialect.read_answer(captured.media_type, captured.body)
        return Sealed(
            media_type=captured.media_type,
            body=captured.body or b"",
            reading=reading or Reading(),
            refusal=admit(captured, reading, self._policy),
        )

    def looks_cut(self) -> bool:
        """The body ends where none of its kind ends. Only asked where the transport cannot tell."""
        captured = self._captured()
        if captured.status != _OK or captured.oversize or captured.body is None:
            return False
        kind = captured.media_type.partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            events = sse.split(captured.body) if captured.clean else None
            return not events or not self._dialect.has_ended(events[-1])
        return kind == "application/json" and (not captured.clean or not _is_json(captured.body))

    def _captured(self) -> Captured:
        body: bytes | None = None
        clean, oversize = True, self._oversize
        storable = self._status == _OK and 0 < len(self._media_type) <= _MAX_MEDIA_TYPE
        if storable and not oversize:
            try:
                body = decoded(self._codings, b"".join(self._pieces), self._policy.max_body_bytes)
            except Undecodable:
                body = None
            except CutOff:
                body, clean = b"", False
            except Oversize:
                oversize = True
        return Captured(self._status, self._media_type, body, clean=clean, oversize=oversize)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
