"""What other replicas changed, heard through LISTEN, and the proof that nothing was missed.

PostgreSQL delivers notifications in the order of the commits they belong to. So this process sends
itself one now and then, a beat: when the beat sent at T has come back, every change committed by T
has been heard. Whoever keeps copies may trust them for a while after T, and no longer.

That is so on one session of one server. A pooler that lends a session for each transaction brings
a beat back, too, for it is sent where it is heard, and loses what comes in between. It is known by
the process id it tells when connecting, which cannot be that of the session it lends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesvc.store.faults import FOREIGN, as_ours
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("cachesvc.store")

CHANNEL = "cachesvc"
APPLICATION_NAME = "cachesvc notices"
_SETTINGS = {
    "application_name": APPLICATION_NAME,
    # A beat is not worth waiting for the disk. PgBouncer refuses whoever asks for this, as it must:
    # through it beats may come back where changes do not.
    "synchronous_commit": "off",
}
LEASE_SECONDS = 0.75
_BEAT_SECONDS = 0.2
_PATIENCE_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_BACKOFF_SECONDS = (0.2, 5.0)
_NEVER = float("-inf")
_POOLED = "notifications get lost; service.listen_url must lead straight to the database"
_AWAY = (*FOREIGN, TimeoutError, asyncpg.InternalClientError)
# Seconds on a clock that only grows, also while the machine sleeps, as the database's does; not
# every system has one.
since_boot = functools.partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)


class Notices:
    """One connection that listens, straight to the primary, and comes back by itself.

    `heard` is called with each change's payload, and with None when anything may have been missed.
    """

    def __init__(
        self,
        url: str,
        heard: Callable[[str | None], None],
        *,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        self._url = url
        self._heard = heard
        self._clock = clock
        self._beat_channel = f"{CHANNEL}_{uuid.uuid4().hex}"
        self._came = asyncio.Event()
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Event] = []
        self._listening = False
        self._told = False
        self._proved = _NEVER

    def proof_seconds(self) -> float:
        """How long ago everything that was committed by then is known to have been heard."""
        return self._clock() - self._proved

    @property
    def holds(self) -> bool:
        """Whether copies may be trusted now."""
        return self._clock() - self._proved <= LEASE_SECONDS

    async def settled(self) -> None:
        """Wait until everything that is committed by now has been heard.

        Where that cannot be had within a second, copies are not trusted until it can.
        """
        if not self._listening:
            return
        heard = asyncio.Event()
        self._waiting.append(heard)
        self._wanted.set()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await heard.wait()
        except TimeoutError:
            self._proved = _NEVER

    async def run(self) -> None:
        """Listen until cancelled."""
        pause = _BACKOFF_SECONDS[0]
        while True:
            try:
                await self._listen()
            except _AWAY as exc:
                if not self._told:
                    self._told = True
                    log.warning("no answers are served from memory: %s", as_ours(exc).message)
                if self.holds:
                    pause = _BACKOFF_SECONDS[0]
            finally:
                # Whatever ended it: nobody may wait for what nobody hears.
                self._lose()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF_SECONDS[1])

    async def _listen(self) -> None:
        try:
            connection = await asyncpg.connect(
                self._url, timeout=_CONNECT_SECONDS, server_settings=_SETTINGS
            )
        except asyncpg.ProtocolViolationError as exc:
            raise asyncpg.InterfaceError(_POOLED) from exc
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                if not await connection.fetchval(statement("is_own_session")):
                    raise asyncpg.InterfaceError(_POOLED)
                if await connection.fetchval(statement("is_distributed")):
                    raise asyncpg.InterfaceError("Citus notifies on its workers, not here")
                await connection.add_listener(CHANNEL, self._change_came)
                await connection.add_listener(self._beat_channel, self._beat_came)
            # Whatever changed until now was not heard.
            self._heard(None)
            self._listening = True
            await self._beats(connection)
        finally:
            connection.terminate()

    async def _beats(self, connection: Any) -> None:
        while True:
            waiting, self._waiting = self._waiting, []
            self._wanted.clear()
            self._came.clear()
            sent = self._clock()
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    beat = await connection.fetchrow(statement("beat"), self._beat_channel)
                    if beat["pid"] != connection.get_server_pid():
                        raise asyncpg.InterfaceError(_POOLED)
                    await self._came.wait()
            except TimeoutError:
                raise asyncpg.InterfaceError(_POOLED) from None
            self._proved = sent
            self._told = False
            for heard in waiting:
                heard.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_SECONDS):
                    await self._wanted.wait()

    def _lose(self) -> None:
        self._listening = False
        self._proved = _NEVER
        self._heard(None)
        for heard in self._waiting:
            heard.set()
        self._waiting = []

    def _change_came(self, _connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        self._heard(str(payload))

    def _beat_came(self, *_: Any) -> None:
        self._came.set()
