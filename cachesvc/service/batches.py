"""What is written off the reply path, in batches; what could not be written is tried again."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from cachesvc.errors import StoreError, StoreRefused, StoreUnsure
from cachesvc.service.faults import FaultLog, log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cachesvc.service.telemetry import Telemetry

K = TypeVar("K")
V = TypeVar("V")
_AGAIN_SECONDS = 1.0  # at least, until what failed is tried again
_COUNTED_EVERY_SECONDS = 0.01
_LEAVING_SECONDS = 0.5  # a driver may take long to give up on a frozen server


@dataclass(frozen=True, slots=True)
class Terms:
    """`cause` is what losses are counted under, `what` is what the log calls it."""

    cause: str
    what: str
    every_seconds: float  # from one round to the next; the first begins at once
    at_most: int  # values that may wait
    batch: int  # values written at once


class Batches(Generic[K, V]):
    """Values that wait to be written, by tenant and key.

    A batch is one tenant's, so that no tenant's fault costs another one's. One that was surely not
    written is tried again, after all others. Lost, and counted, is what finds no place, what the
    database refuses, and what it may have written already: nothing is written twice. Where all
    places are taken, whoever has most of them gives up his newest.
    """

    def __init__(
        self,
        terms: Terms,
        write: Callable[[str, list[tuple[K, V]]], Awaitable[None]],
        merged: Callable[[V, V], V],
        telemetry: Telemetry,
    ) -> None:
        """`write` raises StoreError; `merged` makes one of a key's older and newer value."""
        self._terms = terms
        self._write = write
        self._merged = merged
        self._telemetry = telemetry
        self._waiting: dict[str, dict[K, V]] = {}
        self._size = 0
        self._crowd = ""  # the tenant with most values, when they were counted last
        self._counted_again = 0.0
        self._writer: asyncio.Task[None] | None = None
        self._due = 0.0  # by the loop's clock, when the next round may begin
        self._ending = asyncio.Event()
        self._faults = FaultLog(terms.what)

    def add(self, tenant: str, key: K, value: V) -> bool:
        """Have a value written; False where it found no place."""
        theirs = self._waiting.get(tenant, {})
        if key in theirs:
            theirs[key] = self._merged(theirs[key], value)
            return True
        if self._size >= self._terms.at_most:
            self._telemetry.failed(self._terms.cause)
            if not self._makes_room(tenant, len(theirs)):
                return False
        theirs[key] = value
        self._waiting[tenant] = theirs
        self._size += 1
        if self._writer is None:
            self._writer = asyncio.create_task(self._run())
        return True

    def _makes_room(self, tenant: str, number: int) -> bool:
        """Take a place from the tenant who has most of them: no flood costs others theirs.

        False where this one, who has so many, would have as many then.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._counted_again:
            # In a flood of everybody's all would be counted for each.
            self._counted_again = now + _COUNTED_EVERY_SECONDS
            self._crowd = max(self._waiting, key=lambda one: len(self._waiting[one]))
        crowd = self._waiting.get(self._crowd, {})
        if self._crowd == tenant or len(crowd) <= number + 1:
            return False
        crowd.popitem()
        self._size -= 1
        return True

    async def drain(self, seconds: float) -> None:
        """Write what waits, within so long."""
        self._ending.set()
        if self._writer is not None:
            _, late = await asyncio.wait((self._writer,), timeout=seconds)
            for task in late:
                task.cancel()
                await asyncio.wait((task,), timeout=_LEAVING_SECONDS)
        if self._size:
            self._telemetry.failed(self._terms.cause, self._size)
            log.warning("%s: %d were not written before the end", self._terms.what, self._size)
        self._waiting, self._size = {}, 0

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due):
                        await self._ending.wait()
                last, began = self._ending.is_set(), clock()
                fine = await self._round()
                if last and not fine:
                    return
                self._due = began + self._terms.every_seconds if fine else clock() + _AGAIN_SECONDS
        finally:
            self._writer = None

    async def _round(self) -> bool:
        """Write what waits now; False as soon as the database does not take it."""
        for tenant in list(self._waiting):
            theirs = list(self._waiting.pop(tenant).items())
            self._size -= len(theirs)
            try:
                while theirs:
                    batch = theirs[: self._terms.batch]
                    if not await self._over(tenant, batch):
                        return False
                    del theirs[: len(batch)]
            finally:
                for key, value in theirs:
                    self._put_back(tenant, key, value)
        return True

    def _put_back(self, tenant: str, key: K, value: V) -> None:
        """Have a value written later, as what came before all that waits now."""
        theirs = self._waiting.get(tenant, {})
        if key in theirs:
            theirs[key] = self._merged(value, theirs[key])
        else:
            self.add(tenant, key, value)

    async def _over(self, tenant: str, batch: list[tuple[K, V]]) -> bool:
        """Write a batch; False where it was not, and may be later."""
        try:
            await self._write(tenant, batch)
        except (StoreRefused, StoreUnsure) as exc:
            self._telemetry.failed(self._terms.cause, len(batch))
            self._faults.failed(exc.message)
        except StoreError as exc:
            self._faults.failed(exc.message)
            return False
        else:
            self._faults.fine()
        return True
