"""One HTTP request and its reply, straight on ASGI: the hot path pays for nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from cachesvc.errors import Busy, Forbidden, RequestError, TooLarge, UnsupportedMedia
from cachesvc.service import codec
from cachesvc.service.codec import Format
from cachesvc.service.identity import Caller
from cachesvc.wire import ErrorDetail, ErrorReply

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


_READ = frozenset(
    (
        b"host",
        b"accept",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"x-request-id",
    )
)
_NONE: dict[str, Any] = {}
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class ClientGone(Exception):
    """The client left before its request was read: there is nobody to answer."""


class Call(Struct, frozen=True):
    """What a handler is given: who calls, and what."""

    caller: Caller
    parameters: dict[str, str]
    request_id: str
    format: Format = codec.Format.JSON
    body: bytes = b""
    query: str = ""

    def __repr__(self) -> str:
        # Not what was sent: it may come into a log.
        return f"Call({self.caller!r}, {self.request_id!r})"

    def require(self, role: str) -> None:
        """Raises Forbidden unless the caller may act in `role`."""
        if not self.caller.may(role):
            raise Forbidden(f"role: this needs {role!r}, which the caller does not have")


class Reply(Struct, frozen=True):
    """What a handler gives back: `payload`, or `text` that has a media type of its own."""

    payload: Struct | None = None
    status: int = 200
    text: bytes | None = None
    media_type: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __repr__(self) -> str:
        return f"Reply(status={self.status})"


class Exchange:
    """A request as it arrives, and the one way to answer it."""

    __slots__ = ("_headers", "_send", "_unread", "hosts", "method", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.hosts = 0
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _READ:
                if name == b"host":
                    self.hosts += 1
                headers[name] = headers[name] + b"," + value if name in headers else value
        self._headers = headers
        length = headers.get(b"content-length", b"")
        self._unread = b"transfer-encoding" in headers or length.strip(b"0") != b""

    @property
    def host(self) -> bytes:
        return self._headers.get(b"host", b"")

    @property
    def request_id(self) -> str:
        """The caller's `x-request-id`, or "" where it has none that fits in a log line."""
        sent = self._headers.get(b"x-request-id", b"")
        return sent.decode("ascii") if _REQUEST_ID.fullmatch(sent) else ""

    async def read(self, limit: int) -> tuple[bytes, Format]:
        """The body and its format.

        Raises UnsupportedMedia before anything is read, TooLarge as soon as there is more than
        `limit` bytes (whatever Content-Length says), and ClientGone.
        """
        if not self._unread:
            return b"", codec.reply_format(None, self._headers.get(b"content-type"))
        format = codec.body_format(self._headers.get(b"content-type"))
        if self._headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise UnsupportedMedia("Content-Encoding: must be identity")
        declared = self._headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            chunks.append(chunk)
            more = message.get("more_body", False)
        self._unread = False
        return chunks[0] if len(chunks) == 1 else b"".join(chunks), format

    async def answer(self, reply: Reply) -> None:
        """Send a reply, in the format that the caller accepts."""
        headers = list(reply.headers)
        body = reply.text or b""
        if reply.payload is not None:
            format = codec.reply_format(
                self._headers.get(b"accept"), self._headers.get(b"content-type")
            )
            body = codec.write(reply.payload, format)
            headers.append((b"content-type", format._value_))
        elif reply.text is not None:
            headers.append((b"content-type", reply.media_type))
        if reply.status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        if self._unread:
            # What is still on its way is not worth reading: the server closes instead.
            headers.append((b"connection", b"close"))
        whole = self.scope.get("extensions", _NONE).get("cachesvc.reply")
        if whole is not None and whole(reply.status, headers, body):
            return
        await self._send(
            {"type": "http.response.start", "status": reply.status, "headers": headers}
        )
        await self._send({"type": "http.response.body", "body": body})


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"body: is over max_request_bytes, which is {limit:,}")


def refusal(
    status: int, code: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Reply:
    """The error envelope."""
    return Reply(ErrorReply(error=ErrorDetail(code=code, message=message)), status, headers=headers)


def refused(error: RequestError) -> Reply:
    """The reply that an error asks for."""
    if isinstance(error, Busy):
        return retry_later(error.status, error.code, error.message, error.retry_after_seconds)
    return refusal(error.status, error.code, error.message)


def retry_later(status: int, code: str, message: str, seconds: int = 1) -> Reply:
    return refusal(status, code, message, ((b"retry-after", b"%d" % seconds),))
