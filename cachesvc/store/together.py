"""Lookups that have to wait for a connection are asked together, in one statement.

What a statement costs both sides, whatever it looks for, is most of what a lookup by key costs: 8
of them together take the time of three. Nobody waits for others to come, and nobody goes before his
turn: each has his place in the one queue for connections, and whoever gets one takes those of his
tenant along who still wait. Those ask for themselves, first of all who wait, where that goes wrong
or takes long.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from cachesvc.errors import StoreError, StoreRefused
from cachesvc.store.faults import foreign_errors_as_ours
from cachesvc.store.leases import SERVED, Hold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from cachesvc.store.leases import Leases
    from cachesvc.store.sql import Plural

    Rows = list[Any]
    Values = tuple[object, ...]
    # A statement on a connection.
    Fetch = Callable[[Any, str, Values], Awaitable[Rows]]

log = logging.getLogger("cachesvc.store")

MOST_AT_ONCE = 8
# Answers may be so long that one is read in time and eight are not; and a line may be dead.
_PATIENCE_SECONDS = 0.4
_ALONE_SECONDS = 10


class _Asked(NamedTuple):
    query: Plural
    tenant: str
    values: Values
    turn: asyncio.Future[Any]
    found: asyncio.Future[Rows | None]  # None: his carrier did not get it


class Together:
    """Lookups through `leases`; a statement is one tenant's, always."""

    def __init__(self, leases: Leases, fetch: Fetch) -> None:
        self.taken_along = 0  # lookups answered by the statements of others
        self.left_alone = 0  # lookups that were taken along, and then asked for themselves
        self._leases = leases
        self._fetch = fetch
        self._waiting: dict[asyncio.Future[Any], _Asked] = {}
        self._alone_until = float("-inf")

    async def rows(self, query: Plural, tenant: str, *values: object) -> Rows:
        """What `query` finds for one asker. Raises StoreUnavailable and StoreRefused."""
        if self._leases.available:
            return await self._alone(query, tenant, values)
        loop = asyncio.get_running_loop()
        asked = _Asked(query, tenant, values, loop.create_future(), loop.create_future())
        self._waiting[asked.turn] = asked
        try:
            with foreign_errors_as_ours():
                place = await self._leases.turn(asked.turn)
            found = await (asked.found if place is SERVED else self._carry(asked, place))
        finally:
            self._waiting.pop(asked.turn, None)
            asked.found.cancel()
        if found is None:
            # He had his turn, and lost it by a fault of others.
            return await self._alone(query, tenant, values, first=True)
        return found

    async def _alone(
        self, query: Plural, tenant: str, values: Values, *, first: bool = False
    ) -> Rows:
        async with Hold(self._leases, first=first) as connection:
            return await self._fetch(connection, query.one, (tenant, *values))

    async def _carry(self, asked: _Asked, place: Any) -> Rows | None:
        """Ask for oneself, and for who may come along; None where that was refused."""
        others: list[_Asked] = []
        try:
            async with Hold(self._leases, place) as connection:
                others = self._companions(asked)
                if not others:
                    values = asked.tenant, *asked.values
                    return await self._fetch(connection, asked.query.one, values)
                found = await self._in_time(self._ask(connection, [asked, *others]), others)
            for other, rows in zip(others, found[1:], strict=True):
                if not other.found.done():
                    other.found.set_result(rows)
                    self.taken_along += 1
            return found[0]
        except StoreError as exc:
            if not others:
                raise
            self._part(others)
            if isinstance(exc, StoreRefused):
                return None
            raise
        finally:
            self._let_go(others)

    async def _in_time(
        self, asking: Coroutine[Any, Any, list[Rows]], others: list[_Asked]
    ) -> list[Rows]:
        timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._part, others)
        try:
            return await asking
        finally:
            timer.cancel()

    def _part(self, others: list[_Asked]) -> None:
        """It goes wrong, or takes long: for a while, nobody joins others."""
        now = asyncio.get_running_loop().time()
        if now >= self._alone_until:
            log.warning(
                "a statement for several lookups failed or took long: each alone for %d s",
                _ALONE_SECONDS,
            )
        self._alone_until = now + _ALONE_SECONDS
        self._let_go(others)

    def _let_go(self, others: list[_Asked]) -> None:
        """Have them ask for themselves who were not answered."""
        for other in others:
            if not other.found.done():
                other.found.set_result(None)
                self.left_alone += 1

    def _companions(self, asked: _Asked) -> list[_Asked]:
        """Those who wait, too, and may come along; they wait for no connection any more."""
        companions: list[_Asked] = []
        if asyncio.get_running_loop().time() < self._alone_until:
            return companions
        for other in self._waiting.values():
            if len(companions) + 1 == MOST_AT_ONCE:
                break
            if not other.turn.done() and _may_come(other, asked):
                companions.append(other)
        for other in companions:
            other.turn.set_result(SERVED)
        return companions

    async def _ask(self, connection: Any, batch: list[_Asked]) -> list[Rows]:
        """What is found for each of them."""
        columns = zip(*(asked.values for asked in batch), strict=True)
        arrays = [list(column) for column in columns]
        found: list[Rows] = [[] for _ in batch]
        values = batch[0].tenant, *arrays
        for row in await self._fetch(connection, batch[0].query.many, values):
            found[row["asked"] - 1].append(row)
        return found


def _may_come(other: _Asked, asked: _Asked) -> bool:
    return other.tenant == asked.tenant and other.query is asked.query
