"""Accepts TLS connections: handshakes are bounded in time and cut off at a stop.

`create_server(ssl=…)` hides a connection until its handshake ends, so silent ones could not be
closed. Here each is a task of ours from its first packet, on asyncio and uvloop alike.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

logger = logging.getLogger("cachesvc.edge")

# A peer that never answers our close_notify is dropped after this.
_SHUTDOWN_SECONDS = 1.0
# How long to wait when the process has no file descriptor left.
_PAUSE_SECONDS = 0.5
_AT_ONCE = 100
_TLS_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class TLSAcceptor:
    """Hands each connection on a listening socket, once its handshake is done, to a protocol."""

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[], asyncio.Protocol],
        handshake_seconds: float,
    ) -> None:
        self._listening = listening
        self._context = context
        self._make = make
        self._seconds = handshake_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._refusals = 0
        self._quiet_until = 0.0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening, self._accept)

    async def close(self) -> None:
        """Accept no more and cut off the handshakes in progress."""
        self._loop.remove_reader(self._listening)
        if self._resume is not None:
            self._resume.cancel()
        # A task cancelled before its first step would leave its socket open.
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                logger.warning("cannot accept a connection: %s", exc.strerror)
                self._loop.remove_reader(self._listening)
                again = self._loop.add_reader
                self._resume = self._loop.call_later(
                    _PAUSE_SECONDS, again, self._listening, self._accept
                )
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._shake(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._seconds,
                ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
            )
        except (OSError, ValueError) as exc:
            # Its certificate, its TLS version, or its silence: the peer's fault, not ours. A
            # ValueError is a name in its certificate that Python cannot decode.
            self._tell(exc)

    def _tell(self, exc: Exception) -> None:
        """Log a refusal, once a second at most: whoever reaches the port can cause them."""
        self._refusals += 1
        now = self._loop.time()
        if now < self._quiet_until:
            return
        reason = exc.reason if isinstance(exc, ssl.SSLError) else type(exc).__name__
        reason = getattr(exc, "verify_message", "") or reason
        logger.info("%d TLS handshakes refused, the last: %s", self._refusals, reason)
        self._refusals, self._quiet_until = 0, now + 1


def peer_extension(transport: asyncio.Transport) -> dict[str, Any] | None:
    """What the handshake proved; None on a plain connection.

    Python below 3.13 gives the leaf only, so the chain has at most one certificate.
    """
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        return None
    leaf = tls.getpeercert(binary_form=True)
    return {
        "server_cert": None,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(leaf)] if leaf else [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": _TLS_VERSIONS.get(tls.version() or ""),
        "cipher_suite": None,
        "cachesvc.sha256": hashlib.sha256(leaf).hexdigest() if leaf else None,
    }
