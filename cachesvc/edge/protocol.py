"""uvicorn's HTTP/1 protocol, with bounds it lacks, the peer's certificate, and a way to break off.

What uvicorn 0.54 with httptools lets through and this does not: no Host or two, any number and size
of headers, headers that never end, trailers that join the request's headers, a 400 written into the
middle of another answer, a POST whose body vanishes because it offered an upgrade to h2c.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import httptools

from cachesvc.edge.at_once import AtOnceProtocol
from cachesvc.edge.handover import Handover, offers_upgrade
from cachesvc.edge.handshake import peer_extension
from cachesvc.edge.limits import Refused, check_head, closing_reply, envelope

if TYPE_CHECKING:
    import asyncio

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# A connection closed with bytes unread is reset, and the refusal may be lost with it: so what the
# peer still sends is read and dropped, for so long and so much (RFC 9112, 9.6).
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 2**20
_UNREADABLE = "the request is not HTTP/1"


class EdgeProtocol(AtOnceProtocol):
    """One connection. `server_state` may hold `limits` and `refusal`, the words of an error.

    scope["extensions"]["tls"]: under TLS, the ASGI TLS extension 0.2 (`client_cert_chain` in PEM)
    and `cachesvc.sha256`, the leaf's fingerprint in hex. One dict per connection: what is worked
    out of the certificate may be kept in it. Absent on plain connections.
    scope["extensions"]["cachesvc.abort"]: call it to break the connection off.
    scope["extensions"]["cachesvc.reply"]: a WholeReply, where the request is not of HTTP/1.0.
    scope["extensions"]["cachesvc.bare_query"]: there where the target ends in a bare `?`.
    scope["extensions"]["cachesvc.handover"]: a Handover, where `server_state.handovers` is true
    and the request offers an upgrade other than h2c.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusal = getattr(self.server_state, "refusal", None) or envelope
        self._handovers = getattr(self.server_state, "handovers", False)
        self._handover: Handover | None = None
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._tls: dict[str, Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._between = True
        self._in_head = False
        self._head_timed = False
        self._upgrading = False
        self._body_came = False
        self._head_bytes = 0
        self._callbacks = 0
        self._unfinished = 0
        self._dropped = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._tls = peer_extension(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refused = True
            self._close_with(503, f"connections: at most {self.limits.max_connections}")
        else:
            self._arm(self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self._handover is not None:
            self._handover.lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        return self._handover.ended() if self._handover is not None else None

    def abort(self) -> None:
        """Break the connection off: RST over TCP, no close_notify under TLS. Never a clean end."""
        self._refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._tls is None:
            with contextlib.suppress(OSError):
                plain: socket.socket = self.transport.get_extra_info("socket")
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._dropped += len(data)
            if self._dropped > _LINGER_BYTES:
                self.abort()
            return
        if self._handover is not None:
            self._handover.received(data)
            return
        if self._between and not data.strip(b"\r\n"):
            # Empty lines before a request are nothing (RFC 9112, 2.2): they stop no timer.
            return
        self._unset_keepalive_if_required()
        before = self._callbacks
        refused = None
        self._hold_back()
        try:
            self._feed(data)
            self._bound_unfinished(data, before)
        except Refused as refusal:
            refused = refusal.args
        except httptools.HttpParserError as exc:
            known = exc.__context__
            refused = known.args if isinstance(known, Refused) else (400, _UNREADABLE)
        self._time_what_is_missing()
        self._let_go(now=refused is None)
        if refused is not None:
            self._refuse(*refused)

    def _time_what_is_missing(self) -> None:
        """Most requests come in one piece and cost no timer."""
        if self._in_head:
            if not self._head_timed:
                self._head_timed = True
                self._arm(self.limits.header_seconds)
        elif self._body_came:
            self._body_came = False
            self._arm_body()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._handover is not None:
                self._handover.received(data[upgrade.args[0] :])
                return
            # The parser takes what follows for another protocol, a POST's body included. An upgrade
            # may be ignored (RFC 9110, 7.8): the request is read again without its offer.
            again = self._head_without_upgrade() + data[upgrade.args[0] :]
            self.parser = httptools.HttpRequestParser(self)
            try:
                self.parser.feed_data(again)
            except httptools.HttpParserUpgrade:
                raise Refused(400, "Upgrade: is offered by two requests at once") from None

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _bound_unfinished(self, data: bytes, before: int) -> None:
        """Bound what the parser keeps or skips without telling: a long header, chunk extension."""
        self._unfinished = self._unfinished + len(data) if self._callbacks == before else 0
        if self._unfinished + self._head_bytes * self._in_head > self.limits.max_head_bytes:
            raise Refused(431, f"headers: at most {self.limits.max_head_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._callbacks += 1
        self._between, self._in_head = False, True
        self._head_timed = self._upgrading = False
        self._head_bytes = 0
        self._body_came = False
        self._raw_headers = []
        extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
        extensions["cachesvc.abort"] = self.abort
        if self._tls is not None:
            extensions.setdefault("tls", self._tls)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here, too: counted, and dropped (RFC 9110, 6.5.1 forbids merging them).
        self._count(len(name) + len(value) + 4)
        if self._in_head:
            if self._handovers:
                self._raw_headers.append((name, value))
            # As uvicorn has it: a call less for each header.
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def _count(self, size: int) -> None:
        self._callbacks += 1
        self._head_bytes += size
        if self._head_bytes > self.limits.max_head_bytes:
            raise Refused(431, f"headers: at most {self.limits.max_head_bytes} bytes")

    def on_headers_complete(self) -> None:
        self._callbacks += 1
        method, version = self.parser.get_method(), self.parser.get_http_version()
        offered = self.parser.should_upgrade() and method != b"CONNECT"
        handed = offered and self._handovers and offers_upgrade(method, version, self._raw_headers)
        if offered and not handed:
            self._upgrading = True
            return
        if len(self.headers) > self.limits.max_headers:
            raise Refused(431, f"headers: at most {self.limits.max_headers}")
        check_head(method, version, self.headers)
        self._in_head = False
        self._disarm()
        if self.url.find(b"?") == len(self.url) - 1:
            self.scope["extensions"]["cachesvc.bare_query"] = {}
        super().on_headers_complete()
        if handed:
            self._hand_over()
        else:
            self._body_came = True

    def _hand_over(self) -> None:
        self._handover = Handover(
            self.transport, self.flow, self.cycle, self._raw_headers, self.abort
        )
        extensions: Any = self.cycle.scope["extensions"]
        extensions["cachesvc.handover"] = self._handover

    def on_body(self, body: bytes) -> None:
        self._callbacks += 1
        self._body_came = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._callbacks += 1
        if not self._upgrading:
            self._between, self._body_came = True, False
            self._disarm()
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._handover is not None:
            self._handover.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._handover is not None:
            self._handover.resume_writing()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._expired)

    def _arm_body(self) -> None:
        if self.limits.body_seconds is not None:
            self._arm(self.limits.body_seconds)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        if self._between:
            self.transport.close()
        elif self._in_head:
            self._refuse(408, f"headers: take longer than {self.limits.header_seconds:g} seconds")
        elif self.flow.read_paused:
            self._arm_body()  # not the peer is slow: the app is
        else:
            self._refuse(408, f"body: nothing of it came in {self.limits.body_seconds:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        """Answer nothing more on this connection but `status`, and close it.

        An answer in progress to an earlier request is never written into: it goes on to its end.
        """
        self._refused = True
        self._disarm()
        cycle = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if busy and (self._in_head or self._between):
            cycle.keep_alive = False
        elif busy and (cycle.response_started or self.pipeline):
            self.abort()
        else:
            if busy:
                cycle.disconnected = True
                cycle.message_event.set()
            self._close_with(status, message)

    def _close_with(self, status: int, message: str) -> None:
        self.transport.write(closing_reply(status, self._refusal(status, message)))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()
