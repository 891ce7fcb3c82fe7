"""A connection that listens: a session of its own, on one of the hosts of a URL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesvc.store.hosts import each_host
from cachesvc.store.pooler import NEXT_HOST
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Callable

APPLICATION_NAME = "cachesvc notices"
_SETTINGS = {
    "application_name": APPLICATION_NAME,
    # PgBouncer refuses whoever asks for this, as it must: through it changes get lost.
    "synchronous_commit": "off",
}
_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 1.0
_POOLED = "notifications get lost; service.listen_url must lead straight to the database"


class Listener:
    """Connects to one host after another until one lets it in, and stays with that one."""

    def __init__(self, url: str, channels: dict[str, Callable[..., None]]) -> None:
        self._urls = each_host(url)
        self._place = 0
        self._channels = channels

    def move_on(self) -> None:
        """Begin with the next host."""
        self._place = (self._place + 1) % len(self._urls)

    async def connect(self) -> Any:
        """A connection that hears its channels. Each host has a deadline of its own.

        Raises what asyncpg and the network raise; InterfaceError where changes would get lost.
        """
        connection = await self._first_host()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                session = await connection.fetchrow(statement("own_session"))
                # A pooler tells a process id of its own, and lends the sessions of others.
                if session["pid"] != connection.get_server_pid() or not session["as_asked"]:
                    raise asyncpg.InterfaceError(_POOLED)
                if await connection.fetchval(statement("is_distributed")):
                    raise asyncpg.InterfaceError("Citus notifies on its workers, not here")
                for channel, heard in self._channels.items():
                    await connection.add_listener(channel, heard)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _first_host(self) -> Any:
        for _ in self._urls:
            try:
                url, seconds = self._urls[self._place], _CONNECT_SECONDS / len(self._urls)
                return await _connect(url, seconds)
            except NEXT_HOST as exc:
                fault = exc
                self.move_on()
        if isinstance(fault, asyncpg.TargetServerAttributeNotMatched):
            raise asyncpg.InterfaceError("no host is as target_session_attrs wants it") from fault
        raise fault


async def _connect(url: str, seconds: float) -> Any:
    try:
        return await asyncpg.connect(url, timeout=seconds, server_settings=_SETTINGS)
    except asyncpg.ProtocolViolationError as exc:
        raise asyncpg.InterfaceError(_POOLED) from exc
    except ValueError as exc:
        raise asyncpg.InterfaceError("service.listen_url: is no URL of a database") from exc
