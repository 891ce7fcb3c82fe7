"""A request that offers an upgrade: what follows it may be another protocol than HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_HELD_BYTES = 64 * 1024


def offers_upgrade(method: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether an offer may be handed over: not h2c (RFC 9113, 3.1, did away with it).

    A reply to HEAD has a length and no body: whoever counts the bytes of a refusal cannot tell.
    """
    offered = b",".join(value for name, value in headers if name.lower() == b"upgrade")
    tokens = {token.strip().lower() for token in offered.split(b",")}
    return version == "1.1" and method != b"HEAD" and b"h2c" not in tokens


class Handover:
    """scope["extensions"]["cachesvc.handover"]: an app may take the connection's bytes over.

    Until `write`, the app may still reply as it would to any other request; the connection is
    closed after such a reply. `headers` are the request's, names and values as they came.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        flow: FlowControl,
        cycle: RequestResponseCycle,
        headers: Sequence[tuple[bytes, bytes]],
        abort: Callable[[], None],
    ) -> None:
        self.headers = headers
        self.abort = abort
        self._transport = transport
        self._flow = flow
        self._cycle = cycle
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ended = self._lost = False
        self._fault: Exception | None = None
        self._receiver: asyncio.Protocol | None = None
        cycle.keep_alive = False

    def take(self, receiver: asyncio.Protocol) -> None:
        """Give `receiver` everything behind the request's head, from what was already read on.

        Its `connection_made` is not called.
        """
        self._receiver = receiver
        for piece in self._held:
            receiver.data_received(piece)
        self._held.clear()
        if self._lost:
            receiver.connection_lost(self._fault)
            return
        if self._ended:
            receiver.eof_received()
        self._flow.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes as they are: from the first on, the reply is the app's own."""
        self._cycle.disconnected = True
        self._transport.write(data)

    def write_eof(self) -> None:
        """Half-close, or close where TLS knows no half."""
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def close(self) -> None:
        """Close, once all is sent."""
        self._cycle.disconnected = True
        self._transport.close()

    def pause_reading(self) -> None:
        self._flow.pause_reading()

    def resume_reading(self) -> None:
        self._flow.resume_reading()

    def received(self, data: bytes) -> None:
        """The connection has these bytes."""
        if self._receiver is not None:
            self._receiver.data_received(data)
        elif data:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > _HELD_BYTES:
                self._flow.pause_reading()

    def ended(self) -> bool | None:
        """The peer sends no more. True: the connection stays open for what it is still sent."""
        self._ended = True
        return self._receiver.eof_received() if self._receiver is not None else True

    def lost(self, fault: Exception | None) -> None:
        """The connection is gone."""
        self._lost, self._fault = True, fault
        if self._receiver is not None:
            self._receiver.connection_lost(fault)

    def pause_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.resume_writing()
