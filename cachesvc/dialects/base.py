"""A dialect: what the proxy must know of one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cachesvc.core.admission import Reading
    from cachesvc.core.ask import Ask
    from cachesvc.dialects.sse import Event


class Dialect(Protocol):
    """One provider protocol. `path` is where it is served."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not this protocol's."""

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, by the media type it came with; None when it is not whole.

        An event stream is whole when its last event is the protocol's end, on a frame boundary,
        and no event is an error.
        """

    def has_ended(self, last: Event) -> bool:
        """After this event nothing comes: the protocol's end, or its way to say that it failed."""

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """A stored answer with every number of its usage set to 0 and all other bytes as stored."""

    def error(self, status: int, code: str, message: str) -> bytes:
        """A JSON error body in the protocol's own shape."""
