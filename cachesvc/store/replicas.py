"""Lookups from streaming replicas, as long as these are known to be fresh.

The primary's position in its log is sampled now and then. A replica that has replayed the position
of a sample holds everything that was committed when that sample was *sent*, so it is as fresh as
that. A lookup goes to a replica only while that is no longer ago than the bound; else, and after
any fault, to the primary. What was just put may be missed meanwhile, what was purged longer ago
than the bound is never found. Whether something has expired tells the clock of the server that
answers: replicas want theirs synchronised with the primary's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, NamedTuple

from cachesvc.errors import NotFound, StoreError
from cachesvc.store.notices import since_boot
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from cachesvc.core.model import Answer
    from cachesvc.store.base import (
        EntryStore,
        ExactQuery,
        Found,
        NearestQuery,
        NewEntry,
        Place,
        PolicyRow,
        Stored,
    )
    from cachesvc.store.pool import Database

log = logging.getLogger("cachesvc.store")

_SAMPLE_SECONDS = 0.2
_PATIENCE_SECONDS = 0.5  # longest a lookup waits for a replica before it asks the primary
_REST_SECONDS = 2.0
_POLICIES_AT_MOST = 10_000
_NEVER = float("-inf")


class Sample(NamedTuple):
    """Where the primary was, and when it was asked."""

    sent: float
    timeline: int
    position: int  # bytes of log


class Replica:
    """One streaming replica, its connections, and as of when it is known to be fresh."""

    def __init__(self, database: Database, store: EntryStore) -> None:
        self.database = database
        self.store = store
        self.fresh_as_of = _NEVER
        self.rests_until = _NEVER
        self.reads = 0
        self._told = False

    async def look(self, samples: deque[Sample], now: float) -> None:
        """Ask how far it is. A fault leaves what was known, which goes stale by itself."""
        try:
            row = await self.database.row(statement("replayed"))
        except StoreError as exc:
            self.rest(exc.message, now)
            return
        self._told = False
        for sample in samples:
            # Of another timeline nothing is comparable: a replica that still follows a primary
            # which was replaced may be further in its own log, and knows nothing of the new one.
            if row["timeline"] == sample.timeline and row["position"] >= sample.position:
                self.fresh_as_of = max(self.fresh_as_of, sample.sent)

    def rest(self, why: str, now: float) -> None:
        self.rests_until = now + _REST_SECONDS
        if not self._told:
            self._told = True
            log.warning("lookups leave a replica alone: %s", why)


class ReplicaReads:
    """An EntryStore: finds in replicas, within `lag_seconds`, and does all else at the primary."""

    def __init__(
        self,
        store: EntryStore,
        primary: Database,
        replicas: Sequence[Replica],
        *,
        lag_seconds: float,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        self.replicas = replicas
        self._store = store
        self._primary = primary
        self._lag = lag_seconds
        self._clock = clock
        self._not_before = _NEVER
        self._turn = 0
        # Of each policy the revision last read from the primary: what lookups are judged under.
        self._revisions: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._samples: deque[Sample] = deque(maxlen=max(4, int(4 * lag_seconds / _SAMPLE_SECONDS)))

    async def run(self) -> None:
        """Follow the positions until cancelled."""
        await asyncio.gather(self._sample(), *(self._follow(one) for one in self.replicas))

    async def settled(self) -> None:
        """What is committed by now is found here by every later lookup."""
        self._not_before = self._clock()

    def lag(self, replica: Replica) -> float:
        """How much older than now what it holds may be, in seconds; infinite while not known."""
        return self._clock() - replica.fresh_as_of

    async def policy(self, tenant: str, policy_id: str) -> PolicyRow | None:
        row = await self._store.policy(tenant, policy_id)
        if row is not None:
            self._know(tenant, policy_id, row.revision)
        return row

    async def find_exact(self, query: ExactQuery) -> Found:
        return await self._find(query.place, lambda store: store.find_exact(query))

    async def find_nearest(self, query: NearestQuery) -> Found:
        return await self._find(query.place, lambda store: store.find_nearest(query))

    async def answer(self, place: Place, entry_id: UUID) -> Answer | None:
        return await self._store.answer(place, entry_id)

    async def put(self, entry: NewEntry) -> Stored:
        return await self._store.put(entry)

    async def add_alias(
        self,
        place: Place,
        exact_key: bytes,
        entry_id: UUID,
        similarity: float,
        revision: int | None = None,
    ) -> None:
        await self._store.add_alias(place, exact_key, entry_id, similarity, revision)

    async def _find(self, place: Place, find: Callable[[EntryStore], Awaitable[Found]]) -> Found:
        known = self._revisions.get((place.tenant, place.policy_id))
        replica = None if known is None else self._fresh()
        if replica is not None:
            behind = self.lag(replica)
            found = await self._try(replica, find)
            # Another policy than the one to be judged under: only the primary knows which stands.
            if found is not None and found.revision == known:
                replica.reads += 1
                return dataclasses.replace(found, behind=behind)
        found = await find(self._store)
        self._know(place.tenant, place.policy_id, found.revision)
        return found

    async def _try(
        self, replica: Replica, find: Callable[[EntryStore], Awaitable[Found]]
    ) -> Found | None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await find(replica.store)
        except NotFound:
            return None
        except TimeoutError:
            replica.rest("it did not answer in time", self._clock())
        except StoreError as exc:
            replica.rest(exc.message, self._clock())
        return None

    def _fresh(self) -> Replica | None:
        """The next replica that is fresh enough; each in its turn."""
        now = self._clock()
        oldest = max(now - self._lag, self._not_before)
        fresh = [
            one for one in self.replicas if one.fresh_as_of >= oldest and now >= one.rests_until
        ]
        self._turn += 1
        return fresh[self._turn % len(fresh)] if fresh else None

    def _know(self, tenant: str, policy_id: str, revision: int) -> None:
        known = self._revisions.get((tenant, policy_id))
        if known is None or revision > known:
            self._revisions[tenant, policy_id] = revision
        if len(self._revisions) > _POLICIES_AT_MOST:
            self._revisions.popitem(last=False)

    async def _sample(self) -> None:
        while True:
            sent = self._clock()
            try:
                row = await self._primary.row(statement("written"))
            except StoreError:
                pass  # whoever writes is told; here replicas go stale
            else:
                self._samples.append(Sample(sent, row["timeline"], row["position"]))
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _follow(self, replica: Replica) -> None:
        while True:
            await replica.look(self._samples, self._clock())
            resting = replica.rests_until - self._clock()
            await asyncio.sleep(max(_SAMPLE_SECONDS, resting))
