"""The upstream: a request goes on as it came, and its answer comes back as it comes."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from cachesvc.errors import CallerLeft, UpstreamFailed
from cachesvc.proxy.capture import is_framed
from cachesvc.proxy.client import sendable
from cachesvc.proxy.request import named_by_connection

if TYPE_CHECKING:
    import io
    from collections.abc import AsyncIterator, Iterable

    from aiohttp.client_middlewares import ClientHandlerType

    from cachesvc.proxy.request import RawHeaders, Request

# RFC 9110, 7.6.1, and what speaks of one connection only. `Host` is the upstream's own.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer"
    b" transfer-encoding upgrade".split()
)
_NOT_SENT_ON = _HOP_BY_HOP | {b"host", b"expect"}
_ADDED_BY_AIOHTTP = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
# Idle connections are given up before most servers give them up (5 s), so that no request is
# sent into a connection that is just being closed.
_KEEPALIVE_SECONDS = 4.0
_MAX_HEADER_BYTES = 256 * 1024
_MAX_HEADERS = 1000
# A fragment is never sent: this one tells of a `?` that URL would drop.
_BARE_QUERY = "?"
_UNSENDABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class _Request(aiohttp.ClientRequest):
    """Sends header values as the bytes they came as; aiohttp would send them as UTF-8.

    And a `?` with nothing behind it, which aiohttp would drop.
    """

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        protocol = conn.protocol
        bare_query = self.original_url.raw_fragment == _BARE_QUERY
        odd = bare_query or not all(value.isascii() for value in self.headers.values())
        if protocol is not None and odd:
            protocol.transport = _RawHead(protocol, bare_query)  # type: ignore[assignment]
        return await super().send(conn)


class _RawHead:
    """Stands for a connection's transport until the head of one request is written."""

    def __init__(self, protocol: aiohttp.client_proto.ResponseHandler, bare_query: bool) -> None:
        self._protocol = protocol
        self._bare_query = bare_query
        self._transport = protocol.transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        head, blank, rest = bytes(data).partition(b"\r\n\r\n")
        if self._bare_query:
            head = head.replace(b" HTTP/1.1", b"? HTTP/1.1", 1)
        self._protocol.transport = self._transport
        if self._transport is not None:
            self._transport.write(head.decode("utf-8").encode("latin-1") + blank + rest)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))


class _Response(aiohttp.ClientResponse):
    """Remembers how its connection ended, which a body without a length does not tell."""

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        self.wire = connection.protocol
        return await super().start(connection)

    @property
    def was_reset(self) -> bool:
        return self.wire is not None and isinstance(self.wire.exception(), aiohttp.ClientOSError)


class Upstream:
    """The upstream's answer: `status`, `headers` fit to be passed on, and the body's pieces."""

    def __init__(self, response: _Response, method: str) -> None:
        self._response = response
        self.status = response.status
        self.headers = tuple(_passed_back(response.raw_headers, response.status))
        self.framed = method == "HEAD" or is_framed(self.status, response.raw_headers)

    def values(self, name: bytes) -> list[str]:
        """The values of one header, lower-case `name`, in order (latin-1)."""
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name]

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes. Raises UpstreamFailed when it breaks off."""
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise _failure(exc) from exc
        if not self.framed and self._response.was_reset:
            raise UpstreamFailed("the upstream reset the connection")


class Relay:
    """One pool of connections to one upstream. Nothing is retried, nothing is followed."""

    def __init__(self, upstream: str, *, connect_seconds: float, idle_seconds: float) -> None:
        self._base = upstream.rstrip("/")
        self._url = URL(self._base, encoded=True)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=connect_seconds,
                sock_connect=connect_seconds,
                sock_read=idle_seconds,
            ),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_ADDED_BY_AIOHTTP,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            request_class=_Request,
            response_class=_Response,
            middlewares=(_once,),
        )

    @asynccontextmanager
    async def call(self, request: Request, body: bytes | None) -> AsyncIterator[Upstream]:
        """Send the request on; `body` where it was read, else it is streamed.

        Raises UpstreamFailed when no answer begins; leaving closes what has not ended.
        """
        headers = _sent_on(request.sent_on)
        data: bytes | io.BytesIO | AsyncIterator[bytes] | None = None
        if body is not None:
            headers["content-length"] = str(len(body))
            data = sendable(body)
        elif request.has_body:
            data = request.pieces()
        try:
            response = await self._session.request(
                request.method,
                self._target(request),
                headers=headers,
                data=data,
                allow_redirects=False,
            )
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as exc:
            if request.gone:
                raise CallerLeft from exc
            raise _failure(exc) from exc
        async with response:
            if not isinstance(response, _Response) or not 200 <= response.status <= 599:
                raise UpstreamFailed(f"the upstream answered with status {response.status}")
            yield Upstream(response, request.method)

    def _target(self, request: Request) -> URL:
        """Path and query as they came, at the upstream or nowhere. Raises UpstreamFailed."""
        query = f"?{request.query}" if request.query else ""
        if request.bare_query:
            query = f"#{_BARE_QUERY}"
        target = URL(f"{self._base}{request.path}{query}", encoded=True)
        at = (target.scheme, target.raw_authority)
        if not request.path.startswith("/") or at != (self._url.scheme, self._url.raw_authority):
            raise UpstreamFailed("the target leads elsewhere")
        return target

    async def close(self) -> None:
        await self._session.close()


async def _once(
    request: aiohttp.ClientRequest, handler: ClientHandlerType
) -> aiohttp.ClientResponse:
    """aiohttp would send an idempotent request again when a kept connection turns out closed."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as exc:
        raise _failure(exc) from exc


def _failure(exc: Exception) -> UpstreamFailed:
    if isinstance(exc, TimeoutError):
        return UpstreamFailed("the upstream did not answer in time", status=504)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return UpstreamFailed("the upstream cannot be reached")
    if isinstance(exc, aiohttp.ClientResponseError | ValueError):
        return UpstreamFailed("the upstream's answer is not HTTP")
    return UpstreamFailed("the upstream broke the connection")


def _sent_on(headers: RawHeaders) -> CIMultiDict[str]:
    sent: CIMultiDict[str] = CIMultiDict()
    dropped = _NOT_SENT_ON
    if any(name.lower() == b"transfer-encoding" for name, _ in headers):
        dropped |= {b"content-length"}
    for name, value in headers:
        if name.lower() not in dropped:
            sent.add(name.decode("latin-1"), value.decode("latin-1"))
    return sent


def _passed_back(headers: Iterable[tuple[bytes, bytes]], status: int) -> RawHeaders:
    """What goes back; a header that HTTP forbids to send is left out, the answer is not."""
    headers = tuple(headers)
    dropped = _HOP_BY_HOP | named_by_connection(headers)
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    if chunked or status == 204:  # a 304 tells the length it would have (RFC 9110, 8.6)
        dropped |= {b"content-length"}
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in dropped and not _UNSENDABLE.search(value)
    ]
