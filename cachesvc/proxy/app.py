"""The stand-alone reverse proxy: three pages of its own, everything else goes to the transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST

from cachesvc.errors import CallerLeft
from cachesvc.proxy.request import Reply, Request, Whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesvc.proxy.request import Receive, Scope, Send
    from cachesvc.proxy.telemetry import Telemetry
    from cachesvc.proxy.transport import Transport
    from cachesvc.proxy.tunnel import Tunnels

_TEXT = b"text/plain; charset=utf-8"


class ProxyApp:
    """An ASGI application. `missing` tells what is not ready yet; empty means ready."""

    def __init__(
        self,
        transport: Transport,
        tunnels: Tunnels,
        telemetry: Telemetry,
        missing: Callable[[], list[str]],
    ) -> None:
        self._transport = transport
        self._tunnels = tunnels
        self._telemetry = telemetry
        self._missing = missing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request, reply = Request(scope, receive), Reply(scope, send)
        own = self._own_page(request)
        if own is not None:
            await reply.whole(own)
            return
        handover = (scope.get("extensions") or {}).get("cachesvc.handover")
        if handover is not None:
            await self._tunnels.answer(request, reply, handover)
            return
        try:
            await self._transport.answer(request, reply)
        except CallerLeft:
            return

    def _own_page(self, request: Request) -> Whole | None:
        if request.method != "GET":
            return None
        if request.path == "/livez":
            return _page(200, b"ok\n")
        if request.path == "/readyz":
            missing = self._missing()
            lines = "".join(f"{line}\n" for line in missing or ["ok"])
            return _page(503 if missing else 200, lines.encode())
        if request.path == "/metrics":
            return _page(200, self._telemetry.page(), CONTENT_TYPE_LATEST.encode("ascii"))
        return None


def _page(status: int, body: bytes, media_type: bytes = _TEXT) -> Whole:
    return Whole(status, ((b"content-type", media_type),), body)
