"""A real server in a thread, on either event loop, and sockets to talk to it byte by byte."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import uvloop

from cachesvc.edge.server import Listener, run
from cachesvc.errors import Unauthenticated
from cachesvc.service.identity import Identities

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

    from cachesvc.edge.limits import Limits
    from cachesvc.edge.server import ServerTLS

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
TIMEOUT = 10.0


class App:
    """A small ASGI app that tells what it saw."""

    def __init__(self, identities: Identities | None = None) -> None:
        self.identities = identities or Identities((), tls=False)
        self.calls: list[str] = []
        self.disconnects = threading.Semaphore(0)
        self._go = asyncio.Event()

    def go(self) -> None:
        """Let `stream` and `abort` go on."""
        self._loop.call_soon_threadsafe(self._go.set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self.calls.append(scope["path"])
        handler = getattr(self, scope["path"].strip("/") or "scope")
        await handler(scope, receive, send)

    async def scope(self, scope: Any, receive: Any, send: Any) -> None:
        tls = scope["extensions"].get("tls")
        shown = tls and {name: tls[name] for name in tls if name != "cachesvc.certificate"}
        await _reply(
            send,
            {
                "tls": shown,
                "headers": [[n.decode(), v.decode()] for n, v in scope["headers"]],
                "scheme": scope["scheme"],
                "client": scope["client"],
            },
        )

    async def whoami(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            caller = self.identities.identify(scope)
        except Unauthenticated as exc:
            await _reply(send, {"error": exc.message}, 401)
            return
        await _reply(send, {"tenant": caller.tenant, "name": caller.name})

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects.release()
                return
            body, more = body + message["body"], message["more_body"]
        headers = [[n.decode(), v.decode()] for n, v in scope["headers"]]
        await _reply(send, {"body": body.decode(), "headers": headers})

    async def stream(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends "first", then "last" once told to `go`."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self._go.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async def fail(self, scope: Any, receive: Any, send: Any) -> None:
        """Fails after the first bytes."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        raise ValueError("the app has a bug")

    async def flood(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends more than any socket buffers until the peer is gone."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(receive_disconnect(receive))
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        self.disconnects.release()

    async def bulk(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends 32 MiB in one piece."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(2**25)})

    async def abort(self, scope: Any, receive: Any, send: Any) -> None:
        """Breaks off after the first bytes."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self._go.wait()
        scope["extensions"]["cachesvc.abort"]()
        await send({"type": "http.response.body", "body": b"never", "more_body": True})


async def receive_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(send: Any, value: object, status: int = 200) -> None:
    body = json.dumps(value).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    """`with Running(app, "uvloop") as edge`: edge.port accepts; the exit drains it.

    Leaving fails the test if the loop's exception handler was called.
    """

    app: Any
    loop: str
    tls: ServerTLS | None = None
    limits: Limits | None = None
    grace_seconds: float = 0.2

    def __enter__(self) -> Running:
        self.complaints: list[dict[str, Any]] = []
        self._up: queue.SimpleQueue[list[str] | BaseException] = queue.SimpleQueue()
        self._stop = asyncio.Event()
        self._runner: asyncio.Runner | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        up = self._up.get(timeout=TIMEOUT)
        if isinstance(up, BaseException):
            self._thread.join(TIMEOUT)
            raise up
        self.url = up[0]
        self.port = urlsplit(self.url).port or 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        assert self.complaints == []

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def wait(self, seconds: float) -> bool:
        """True if the server has returned within `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=LOOPS[self.loop]) as runner:
            self._loop = runner.get_loop()
            self._loop.set_exception_handler(lambda _, context: self.complaints.append(context))
            listener = Listener(self.app, "127.0.0.1", 0, "test", self.tls)
            try:
                runner.run(
                    run(
                        [listener],
                        stop=self._stop,
                        ready=self._up.put,
                        grace_seconds=self.grace_seconds,
                        limits=self.limits,
                    )
                )
            except BaseException as exc:
                self._up.put(exc)
                raise

    def connect(self, context: ssl.SSLContext | None = None) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is None:
            return plain
        return context.wrap_socket(plain, server_hostname="localhost")

    def exchange(self, *pieces: bytes) -> bytes:
        """Send the pieces on one connection; everything that comes back until its end."""
        with self.connect() as sock:
            for piece in pieces:
                sock.sendall(piece)
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the peer's end. Raises ConnectionResetError, TimeoutError."""
    received = b""
    while piece := sock.recv(65536):
        received += piece
    return received


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Everything up to `end`. Fails if the connection ends before it."""
    received = b""
    while end not in received:
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    return received


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """The bytes of a request, with Host."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()
