"""Upgrades: a caller and the upstream talk another protocol than HTTP, and we pass its bytes."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cachesvc.errors import UpstreamFailed
from cachesvc.proxy.pump import Tunnel
from cachesvc.proxy.sides import error_reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesvc.dialects.base import Dialect
    from cachesvc.edge.handover import Handover
    from cachesvc.proxy.pump import Upstream
    from cachesvc.proxy.request import Reply, Request

# Connection and Upgrade go on: they are what it is about. So does the framing of a body.
_NOT_SENT_ON = frozenset(
    b"host keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer".split()
)


class Tunnels:
    """Opens a connection of its own to the one upstream for each upgrade. Nothing is retried."""

    def __init__(
        self,
        upstream: str,
        dialects: Sequence[Dialect],
        *,
        connect_seconds: float,
        idle_seconds: float,
    ) -> None:
        parts = urlsplit(upstream)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._authority = parts.netloc.rpartition("@")[2].encode("ascii")
        self._base = parts.path.rstrip("/")
        # The relay's trust: the system's. Reading it takes too long for each tunnel.
        self._trust = _system_trust() if parts.scheme == "https" else None
        self._dialects = {dialect.path: dialect for dialect in dialects}
        self._main = dialects[0]
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds

    async def answer(self, request: Request, reply: Reply, handover: Handover) -> None:
        """One upgrade, from its offer to its end. It is never judged, whatever its path."""
        dialect = self._dialects.get(request.path, self._main)
        if not request.path.startswith("/"):  # it cannot be appended to the upstream's
            await reply.whole(error_reply(self._main, 400, "the request target must be a path"))
            return
        if "transfer-encoding" in request.headers:  # where its body ends is not known beforehand
            said = "an upgrade may have no body of unknown length"
            await reply.whole(error_reply(self._main, 400, said))
            return
        length = request.headers.get("content-length", ("0",))[0]
        body_bytes = int(length) if length.isdecimal() else 0
        head = self._head(request, handover)
        tunnel = Tunnel(handover, head, body_bytes, self._idle_seconds)
        try:
            await tunnel.open(self._connect(tunnel.upstream), self._connect_seconds)
            await tunnel.over
        except UpstreamFailed as failure:
            await reply.whole(error_reply(dialect, failure.status, failure.message))
        finally:
            tunnel.break_off()

    async def _connect(self, upstream: Upstream) -> None:
        await asyncio.get_running_loop().create_connection(
            lambda: upstream,
            self._host,
            self._port,
            ssl=self._trust,
            server_hostname=self._host if self._trust else None,
        )

    def _head(self, request: Request, handover: Handover) -> bytes:
        query = f"?{request.query}" if request.query or request.bare_query else ""
        target = f"{self._base}{request.path}{query}"
        lines = [f"{request.method} {target} HTTP/1.1".encode("latin-1")]
        lines.append(b"Host: " + self._authority)
        lines += [
            b"%b: %b" % (name, value)
            for name, value in handover.headers
            if name.lower() not in _NOT_SENT_ON
        ]
        return b"\r\n".join([*lines, b"", b""])


def _system_trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
