"""What other replicas changed, heard through LISTEN, and the proof that nothing was missed.

PostgreSQL delivers notifications in the order of the commits they belong to, whichever session they
are of. So this process sends itself one now and then, a beat, from where it writes to where it
listens: when the beat sent at T has come back, every change committed by T has been heard. Whoever
keeps copies may trust them for a while after T, and no longer.

A beat that was written and is not heard, though one sent later from the listening session itself
is, was written to another database than the one that is listened to.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import msgspec

from cachesvc.deadline import Overdue, Within
from cachesvc.errors import StoreError
from cachesvc.store.faults import FOREIGN, as_ours
from cachesvc.store.listener import Listener
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachesvc.store.pool import Database

log = logging.getLogger("cachesvc.store")

CHANNEL = "cachesvc"
LEASE_SECONDS = 0.75
_BEAT_SECONDS = 0.2
_PATIENCE_SECONDS = 1.0
_BACKOFF_SECONDS = (0.2, 5.0)
_NEVER = float("-inf")
_CLOSED = "the connection that listens was closed"
_SILENT = "no answers are served from memory: %s"
_ELSEWHERE = (
    "what is written through service.database_url is not heard through service.listen_url, "
    "which names another database"
)
_AWAY = (*FOREIGN, TimeoutError, asyncpg.InternalClientError)
# Seconds on a clock that only grows, also while the machine sleeps, as the database's does; not
# every system has one.
since_boot = functools.partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)


class _Elsewhere(Exception):
    """What is written is not heard, though the line is sound."""


class Change(NamedTuple):
    """Of a policy all, or of some of its entries; where no policy is named, of a tenant's."""

    tenant: str
    policy_id: str
    entry_ids: tuple[str, ...] | None = None


def change_of(payload: str) -> Change | None:
    """What a notification says has changed; None where it says nothing that is understood."""
    try:
        change = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return None
    match change:
        case [str(tenant), str(policy_id)]:
            return Change(tenant, policy_id)
        case [str(tenant), str(policy_id), list(ids)] if all(isinstance(id, str) for id in ids):
            return Change(tenant, policy_id, tuple(ids))
    return None


class Notices:
    """What is written through `database`, heard straight from the primary at `url`.

    Whatever fails, it comes back by itself.
    """

    def __init__(
        self, url: str, database: Database, *, clock: Callable[[], float] = since_boot
    ) -> None:
        self._database = database
        self._clock = clock
        self._beat_channel = f"{CHANNEL}_{uuid.uuid4().hex}"
        self._listener = Listener(
            url, {CHANNEL: self._change_came, self._beat_channel: self._beat_came}
        )
        self._numbers = itertools.count()
        self._echoes: dict[str, asyncio.Event] = {}  # of beats that are under way
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Event] = []
        self._listening = False
        self._gap = True  # whether anything may have been missed since the last proof
        self._told = ""
        self._pause = _BACKOFF_SECONDS[0]
        self._proved = _NEVER
        self._heard: Callable[[str | None], None] = _ignore

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
            await Within(_PATIENCE_SECONDS, heard.wait())
        except Overdue:
            self._proved = _NEVER

    async def run(self, heard: Callable[[str | None], None]) -> None:
        """Listen until cancelled.

        `heard` is called with each change's payload, and with None when anything may have been
        missed.
        """
        self._heard = heard
        while True:
            try:
                await self._listen()
            except _Elsewhere:
                # Where there are several hosts, the one that is written to may be the next one.
                self._listener.move_on()
                self._say("elsewhere", _ELSEWHERE)
            except _AWAY as exc:
                self._say("away", as_ours(exc).message)
            finally:
                # Whatever ended it: nobody may wait for what nobody hears.
                self._listening = False
                self._doubt()
                self._answer(self._waiting)
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, _BACKOFF_SECONDS[1])

    async def _listen(self) -> None:
        connection = await self._listener.connect()
        try:
            connection.add_termination_listener(self._ended)
            self._listening = True
            while True:
                _check(connection)
                waiting, self._waiting = self._waiting, []
                self._wanted.clear()
                try:
                    await self._beat(connection)
                finally:
                    self._answer(waiting)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BEAT_SECONDS):
                        await self._wanted.wait()
        finally:
            connection.remove_termination_listener(self._ended)
            connection.terminate()

    async def _beat(self, connection: Any) -> None:
        """Prove that what is committed by now is heard, or doubt it.

        Raises _Elsewhere, and what `_AWAY` names when the line is dead.
        """
        sent = self._clock()
        with self._echo() as (beat, came):
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._database.beat(self._beat_channel, beat)
            except (StoreError, TimeoutError) as exc:
                fault = exc if isinstance(exc, StoreError) else as_ours(exc)
                self._doubt()
                self._say("away", fault.message)
                _check(connection)
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await came.wait()
            _check(connection)
            if not came.is_set():
                await self._hear_oneself(connection)
            if not came.is_set():
                raise _Elsewhere
        self._prove(sent)

    async def _hear_oneself(self, connection: Any) -> None:
        """What was written before, if it was written here, has been heard when this returns."""
        with self._echo() as (beat, came):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await connection.fetch(statement("beat"), self._beat_channel, beat)
                await came.wait()
            _check(connection)

    @contextlib.contextmanager
    def _echo(self) -> Iterator[tuple[str, asyncio.Event]]:
        """A beat's name, and the event of its coming back."""
        beat = str(next(self._numbers))
        came = self._echoes[beat] = asyncio.Event()
        try:
            yield beat, came
        finally:
            self._echoes.pop(beat, None)

    def _prove(self, sent: float) -> None:
        if self._gap:
            # Whatever changed until now may not have been heard.
            self._heard(None)
            self._gap = False
        self._proved = sent
        self._pause = _BACKOFF_SECONDS[0]
        if self._told:
            self._told = ""
            log.info("every change is heard again, and memory answers")

    def _doubt(self) -> None:
        self._gap = True
        self._proved = _NEVER

    def _say(self, state: str, why: str) -> None:
        if self._told != state:
            self._told = state
            log.warning(_SILENT, why)

    def _change_came(self, _connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        self._heard(str(payload))

    def _beat_came(self, _connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        came = self._echoes.get(str(payload))
        if came is not None:
            came.set()

    def _ended(self, _connection: Any) -> None:
        self._wanted.set()
        for came in self._echoes.values():
            came.set()

    @staticmethod
    def _answer(waiting: list[asyncio.Event]) -> None:
        while waiting:
            waiting.pop().set()


def _check(connection: Any) -> None:
    if connection.is_closed():
        raise asyncpg.InterfaceError(_CLOSED)


def _ignore(_payload: str | None) -> None:
    """Nobody listens yet."""
