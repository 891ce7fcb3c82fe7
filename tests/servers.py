"""Servers and a client that speak raw bytes over real sockets, for everything a library smooths.

    async with RawServer(script) as upstream:
        got = await ask(upstream.url, "GET", "/")

A script is `async def script(seen: Seen, wire: Wire)`: it is called once per request and writes the
very bytes of the answer, or breaks the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from types import TracebackType

    Script = Callable[["Seen", "Wire"], Awaitable[None]]
    Headers = Iterable[tuple[str, str]]

PATIENCE_SECONDS = 20.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Seen:
    """A request as it arrived. `head` holds its bytes up to the blank line."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n")[0].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        return _headers(self.head)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class Wire:
    """The connection a script answers on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        """FIN."""
        self._writer.close()

    def reset(self) -> None:
        """RST."""
        bare: socket.socket | None = self._writer.get_extra_info("socket")
        if bare is not None:  # else whoever called has gone already
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the other side has left."""
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await self._reader.read(65536):
                    pass


@dataclass
class RawServer:
    """Answers every request by its script and remembers all of them."""

    script: Script
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    # Called with a reader before anything is read: may hang, or return False to close at once.
    greet: Callable[[], Awaitable[bool]] | None = None

    async def __aenter__(self) -> RawServer:
        self._tasks: set[asyncio.Task[None]] = set()
        self._wires: set[asyncio.StreamWriter] = set()
        self.errors: list[BaseException] = []
        await self.listen(0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        if self.errors and error is None:
            raise self.errors[0]

    async def listen(self, port: int) -> None:
        """Accept, again after `stop`, too."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Refuse new connections and end those there are."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in list(self._wires):
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._wires.add(writer)
        try:
            while not writer.is_closing() and (seen := await read_request(reader, writer)):
                self.seen.append(seen)
                await self.script(seen, Wire(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as exc:
            self.errors.append(exc)
        finally:
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self._wires.discard(writer)
            self._tasks.discard(task)


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None = None
) -> Seen | None:
    """One whole request, None when the peer has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    if writer is not None and b"\r\nexpect: 100-continue" in head.lower():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return Seen(head, await _body(reader, head))


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    fields = {name.lower(): value for name, value in _headers(head)}
    if "chunked" in fields.get("transfer-encoding", ""):
        return b"".join([piece async for piece in _chunks(reader)])
    return await reader.readexactly(int(fields.get("content-length", "0")))


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")


def _headers(head: bytes) -> list[tuple[str, str]]:
    lines = head.rstrip(b"\r\n").split(b"\r\n")[1:]
    pairs = (line.split(b":", 1) for line in lines)
    return [(name.decode("latin-1"), value.strip().decode("latin-1")) for name, value in pairs]


def answer(
    body: bytes,
    *,
    status: str = "200 OK",
    media_type: str = "application/json",
    headers: Headers = (),
    framing: str = "length",
) -> bytes:
    """The bytes of an answer; `framing` is `length`, `chunked` or `close`."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {media_type}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if framing == "length":
        lines.append(f"content-length: {len(body)}")
    elif framing == "chunked":
        lines.append("transfer-encoding: chunked")
        body = chunk(body) + chunk(b"")
    else:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


@dataclass(frozen=True)
class Got:
    """An answer as a caller got it; `clean` tells that the transport ended as it should."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    clean: bool

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    def __getitem__(self, name: str) -> str | None:
        """The only value of a header, None when it is absent."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Caller:
    """A caller on a connection of its own, which it may leave at any time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def got(self, method: str = "POST") -> Got:
        """The whole answer, however it ends."""
        head = await self.head()
        while head.startswith(b"HTTP/1.1 1"):
            head = await self.head()
        headers, status = _headers(head), int(head.split(b" ")[1])
        fields = {name.lower(): value for name, value in headers}
        if method == "HEAD" or status in (204, 304):
            return Got(status, headers, b"", clean=True)
        pieces: list[bytes] = []
        clean = True
        try:
            if "chunked" in fields.get("transfer-encoding", ""):
                async for piece in _chunks(self.reader):
                    pieces.append(piece)
            elif "content-length" in fields:
                pieces.append(await self.reader.readexactly(int(fields["content-length"])))
            else:
                pieces.append(await self.reader.read())
        except asyncio.IncompleteReadError as exc:
            pieces.append(exc.partial)
            clean = False
        except ConnectionError:
            clean = False
        return Got(status, headers, b"".join(pieces), clean)


@asynccontextmanager
async def calling(url: str) -> AsyncIterator[Caller]:
    """A connection to `url`, closed at the end."""
    port = urlsplit(url).port
    assert port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def request(method: str, target: str, headers: Headers = (), body: bytes | None = None) -> bytes:
    """The bytes of a request with Host, and Content-Length where there is a body."""
    lines = [f"{method} {target} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


async def ask(
    url: str, method: str, target: str, headers: Headers = (), body: bytes | None = None
) -> Got:
    """One request on a connection of its own."""
    async with asyncio.timeout(PATIENCE_SECONDS), calling(url) as caller:
        await caller.send(request(method, target, headers, body))
        return await caller.got(method)
