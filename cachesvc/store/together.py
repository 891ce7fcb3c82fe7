"""Lookups that have to wait for a connection are asked together, in one statement.

What a statement costs both sides, whatever it looks for, is most of what a lookup by key costs: 8
of them together take the time of three. Nobody waits for others to come. While a connection is free
a lookup is asked alone, at once; who finds all of them taken would have waited anyway, and goes
with the rest of his tenant who wait by then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from cachesvc.errors import StoreError, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cachesvc.store.sql import Plural

    Fetch = Callable[..., Awaitable[list[Any]]]
    Values = tuple[object, ...]

MOST_AT_ONCE = 8  # no more, for each may find an answer of some megabytes


class _Asked(NamedTuple):
    query: Plural
    tenant: str
    values: Values
    waiter: asyncio.Future[list[Any]]


class Together:
    """At most `lines` statements at a time, through `fetch`; what comes meanwhile goes together.

    A statement is one tenant's, always. Of those who wait, the first has his tenant served first.
    """

    def __init__(self, fetch: Fetch, lines: int) -> None:
        self._fetch = fetch
        self._free = lines
        self._waiting: deque[_Asked] = deque()
        self._serving: set[asyncio.Task[None]] = set()

    async def rows(self, query: Plural, tenant: str, *values: object) -> list[Any]:
        """What `query` finds for one asker. Raises StoreUnavailable and StoreRefused."""
        if self._free:
            self._free -= 1
            try:
                return await self._fetch(query.one, tenant, *values)
            finally:
                self._pass_on()
        waiter: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(query, tenant, values, waiter))
        return await waiter

    def _pass_on(self) -> None:
        """A line has become free: those who wait have it now, else whoever comes."""
        if not self._waiting:
            self._free += 1
            return
        serving = asyncio.get_running_loop().create_task(self._serve())
        # asyncio keeps weak references only.
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self) -> None:
        """Ask for those who wait until nobody does."""
        try:
            while batch := self._next():
                await self._answer(batch)
        finally:
            self._free += 1

    def _next(self) -> list[_Asked]:
        """The first who still waits, and who may go with him."""
        batch: list[_Asked] = []
        left: deque[_Asked] = deque()
        for asked in self._waiting:
            if asked.waiter.done():
                continue  # he has given up
            if not batch or (len(batch) < MOST_AT_ONCE and _may_go(asked, batch[0])):
                batch.append(asked)
            else:
                left.append(asked)
        self._waiting = left
        return batch

    async def _answer(self, batch: Sequence[_Asked]) -> None:
        fault: StoreError = StoreUnavailable("the lookup was given up")
        try:
            found = await self._ask(batch)
            for asked, rows in zip(batch, found, strict=True):
                if not asked.waiter.done():
                    asked.waiter.set_result(rows)
        except StoreRefused as exc:
            fault = exc
            if len(batch) > 1:
                # What the database refuses one of them costs the others nothing.
                for asked in batch:
                    await self._answer([asked])
        except StoreError as exc:
            fault = exc
        finally:
            for asked in batch:
                if not asked.waiter.done():
                    # One each: an error that is shared gathers everybody's traceback.
                    asked.waiter.set_exception(type(fault)(fault.message))

    async def _ask(self, batch: Sequence[_Asked]) -> list[list[Any]]:
        """What is found for each of them."""
        query, tenant = batch[0].query, batch[0].tenant
        if len(batch) == 1:
            return [await self._fetch(query.one, tenant, *batch[0].values)]
        columns = zip(*(asked.values for asked in batch), strict=True)
        found: list[list[Any]] = [[] for _ in batch]
        for row in await self._fetch(query.many, tenant, *map(list, columns)):
            found[row["asked"] - 1].append(row)
        return found


def _may_go(asked: _Asked, first: _Asked) -> bool:
    return asked.tenant == first.tenant and asked.query is first.query
