"""Runs ASGI apps on listeners in one event loop: bind, serve, drain.

uvicorn's protocol and configuration without its Server: that one captures signals, polls ten times
a second, knows no handshake timeout, and forgets connections it could not drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from cachesvc.edge.handshake import TLSAcceptor
from cachesvc.edge.limits import Limits, envelope
from cachesvc.edge.protocol import EdgeProtocol
from cachesvc.errors import StartError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Container, Sequence

_BACKLOG = 2048
_POLL_SECONDS = 0.01
# How long a broken-off reply may take to clean up after itself.
_ABORT_SECONDS = 1.0


@dataclass(frozen=True)
class ServerTLS:
    """PEM files. Client certificates are required, from the CAs in `client_ca_file` alone."""

    cert_file: str
    key_file: str
    client_ca_file: str


@dataclass(frozen=True)
class Listener:
    """Where an ASGI app answers. Port 0 lets the system choose; `name` stands in errors.

    `refusal` words, as JSON, what is refused before the app sees it: status and message.
    With `handovers` the app may take over connections that offer an upgrade (edge/handover.py).
    Requests for the paths in `app.at_once`, where there is such a thing, begin before they have a
    task: up to the first await the app must do without one (edge/at_once.py).
    """

    app: Any
    host: str
    port: int
    name: str
    tls: ServerTLS | None = None
    refusal: Callable[[int, str], bytes] = envelope
    handovers: bool = False


async def run(
    listeners: Sequence[Listener],
    *,
    stop: asyncio.Event,
    ready: Callable[[list[str]], None] | None = None,
    grace_seconds: float = 3.0,
    limits: Limits | None = None,
) -> None:
    """Serve until `stop` is set, then let replies in flight finish for `grace_seconds`.

    `ready` gets one URL per listener once all accept. Raises StartError (an address is taken),
    ConfigError (a TLS file is wrong).
    """
    servings: list[_Serving] = []
    try:
        for listener in listeners:
            # One by one, so that those bound before a failure are closed.
            serving = _Serving(listener, _bind(listener), limits or Limits())
            servings.append(serving)
        for serving in servings:
            await serving.start()
        if ready is not None:
            ready([serving.url for serving in servings])
        await stop.wait()
    finally:
        await asyncio.gather(*(serving.drain(grace_seconds) for serving in servings))


def install_stop_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Let SIGINT and SIGTERM set `stop`."""
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)


class _State(ServerState):
    def __init__(self, listener: Listener, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.refusal = listener.refusal
        self.handovers = listener.handovers
        self.at_once: Container[str] = getattr(listener.app, "at_once", ())


class _Serving:
    """One listener's sockets, connections and replies."""

    def __init__(self, listener: Listener, sockets: list[socket.socket], limits: Limits) -> None:
        self._listener = listener
        self._sockets = sockets
        self._state = _State(listener, limits)
        self._servers: list[asyncio.AbstractServer] = []
        self._acceptors: list[TLSAcceptor] = []
        self._cutting = False
        host, port = sockets[0].getsockname()[:2]
        scheme = "https" if listener.tls else "http"
        self.url = f"{scheme}://{_display(listener.host or host, port)}"

    async def start(self) -> None:
        loop, config = asyncio.get_running_loop(), self._config()
        context = _context(self._listener.tls)

        def make() -> EdgeProtocol:
            return EdgeProtocol(config=config, server_state=self._state, app_state={}, _loop=loop)

        for bound in self._sockets:
            if context is None:
                self._servers.append(await loop.create_server(make, sock=bound, backlog=_BACKLOG))
            else:
                seconds = self._state.limits.handshake_seconds
                self._acceptors.append(TLSAcceptor(bound, context, make, seconds))

    def _config(self) -> uvicorn.Config:
        config = uvicorn.Config(
            self._app,
            http=EdgeProtocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            workers=1,
            log_config=None,
            log_level="warning",
            access_log=False,
            # X-Forwarded-* would let a caller choose its address and scheme.
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=self._state.limits.keep_alive_seconds,
        )
        config.load()
        return config

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._listener.app(scope, receive, send)
        except asyncio.CancelledError:
            # uvicorn would report a reply that a stop cut off as an error of the app.
            if not self._cutting:
                raise

    async def drain(self, grace_seconds: float) -> None:
        """Accept no more, let replies finish for so long, then break off what is left."""
        for server in self._servers:
            server.close()
        for acceptor in self._acceptors:
            await acceptor.close()
        for bound in self._sockets:
            bound.close()
        await self._idle(grace_seconds)
        self._cutting = True
        for connection in self._connections():
            connection.abort()
        for task in list(self._state.tasks):
            task.cancel()
        await self._idle(_ABORT_SECONDS)
        with contextlib.suppress(TimeoutError):
            # From Python 3.12 on this waits for connections, too.
            async with asyncio.timeout(_ABORT_SECONDS):
                for server in self._servers:
                    await server.wait_closed()

    async def _idle(self, seconds: float) -> None:
        """Return when nothing is connected and nothing runs, or after so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._state.connections or self._state.tasks:
            # Asked again each time: a connection may have been on its way in at the stop.
            for connection in self._connections():
                connection.shutdown()
            if loop.time() >= deadline:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _connections(self) -> list[EdgeProtocol]:
        return [c for c in self._state.connections if isinstance(c, EdgeProtocol)]


def _bind(listener: Listener) -> list[socket.socket]:
    """Listening sockets on every address of the listener's host, on one port."""
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    port = listener.port
    try:
        for family, address in _addresses(listener.host):
            try:
                sockets.append(_listen(family, (address[0], port, *address[2:])))
                port = sockets[0].getsockname()[1]
            except OSError as exc:
                # A host without IPv6 may still resolve localhost to ::1.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = exc
        if absent is not None and not sockets:
            raise absent
    except OSError as exc:
        for bound in sockets:
            bound.close()
        where = _display(listener.host, listener.port)
        raise StartError(f"{listener.name}: cannot listen on {where}: {_fault(exc)}") from exc
    return sockets


def _addresses(host: str) -> list[tuple[int, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    # asyncio turns Nagle's delay off only where the protocol is named: else 40 ms per reply.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        # At once: with SO_REUSEADDR an address is only taken by who listens on it.
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def _fault(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return "the host name does not resolve"
    if exc.errno == errno.EADDRINUSE:
        return "the address is in use"
    return os.strerror(exc.errno).lower() if exc.errno else str(exc)


def _display(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _context(tls: ServerTLS | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    # Imported here: the proxy listens without TLS and is installed without the service.
    from cachesvc.edge.tls import server_context

    return server_context(tls.cert_file, tls.key_file, tls.client_ca_file)
