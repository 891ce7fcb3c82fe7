"""Lookups from streaming replicas, as long as these are known to be fresh.

The primary's position in its log is sampled now and then. A replica that has replayed the position
of a sample holds everything that was committed when that sample was *sent*, so it is as fresh as
that. A lookup goes to a replica only while that is no longer ago than the bound; else, and after
any fault, to the primary. What was just put may be missed meanwhile. Of what was purged or changed
`notices.py` tells within a second: from then on a replica answers for that policy only when it is
as fresh as that. While nobody can tell, none answers that may be more than a second behind. Whether
something has expired tells the clock of the server that answers: replicas want theirs synchronised
with the primary's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from cachesvc.deadline import Overdue, Within
from cachesvc.errors import NotFound, StoreError
from cachesvc.store.layers import Layer
from cachesvc.store.notices import change_of, since_boot
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

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
    from cachesvc.store.layers import LayeredStore
    from cachesvc.store.notices import Notices
    from cachesvc.store.pool import Database

    Find = Callable[[EntryStore], Coroutine[Any, Any, Found]]

log = logging.getLogger("cachesvc.store")

_SAMPLE_SECONDS = 0.2
_PATIENCE_SECONDS = 0.5  # longest a lookup waits for a replica before it asks the primary
_REST_SECONDS = 2.0
_POLICIES_AT_MOST = 10_000
_UNHEARD_SECONDS = 1.0  # how far behind a replica may be that answers while no change is heard
_NEVER = float("-inf")


class Sample(NamedTuple):
    """Where the primary was, and when it was asked."""

    sent: float
    timeline: int
    position: int  # bytes of log


class Replica:
    """One streaming replica, its connections, and as of when it is known to be fresh."""

    def __init__(self, database: Database, store: LayeredStore) -> None:
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


class ReplicaReads(Layer):
    """Finds in replicas, within `lag_seconds`; all else does `store`, which is at the primary.

    `notices` tell its `heard` of changes.
    """

    def __init__(
        self,
        store: LayeredStore,
        primary: Database,
        replicas: Sequence[Replica],
        notices: Notices,
        *,
        lag_seconds: float,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        super().__init__(store)
        self.replicas = replicas
        self.notices = notices
        self._primary = primary
        self._lag = lag_seconds
        self._clock = clock
        # Replicas are asked that are at least so fresh: for anything, and for a policy's entries.
        self._not_before = _NEVER
        self._changed: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._turn = 0
        # Of each policy the revision last read from the primary: what lookups are judged under.
        self._revisions: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._samples: deque[Sample] = deque(maxlen=max(4, int(4 * lag_seconds / _SAMPLE_SECONDS)))

    async def run(self) -> None:
        """Follow the positions until cancelled."""
        await asyncio.gather(self._sample(), *(self._follow(one) for one in self.replicas))

    async def settled(self) -> None:
        await super().settled()
        self._not_before = self._clock()

    def heard(self, payload: str | None) -> None:
        super().heard(payload)
        change = None if payload is None else change_of(payload)
        if change is None or not change.policy_id:
            self._not_before = self._clock()
        else:
            self._change(change.tenant, change.policy_id)

    def _change(self, tenant: str, policy_id: str) -> None:
        self._changed[tenant, policy_id] = self._clock()
        self._changed.move_to_end((tenant, policy_id))
        if len(self._changed) > _POLICIES_AT_MOST:
            # What is forgotten of one holds for all.
            _, when = self._changed.popitem(last=False)
            self._not_before = max(self._not_before, when)

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

    async def put(self, entry: NewEntry) -> Stored:
        stored = await self._store.put(entry)
        if stored.replaced:
            self._change(entry.place.tenant, entry.place.policy_id)
        return stored

    async def _find(self, place: Place, find: Find) -> Found:
        known = self._revisions.get((place.tenant, place.policy_id))
        replica = None if known is None else self._fresh(place)
        if replica is not None:
            asked, as_of = self._clock(), replica.fresh_as_of
            found = await self._try(replica, find)
            # Another policy than the one to be judged under: only the primary knows which stands.
            # Nor does it count what changed while the replica was asked.
            if found is not None and found.revision == known and as_of >= self._changed_at(place):
                replica.reads += 1
                return replace(found, behind=asked - as_of)
        found = await find(self._store)
        self._know(place.tenant, place.policy_id, found.revision)
        return found

    async def _try(self, replica: Replica, find: Find) -> Found | None:
        try:
            return await Within(_PATIENCE_SECONDS, find(replica.store))
        except NotFound:
            return None
        except Overdue:
            replica.rest("it did not answer in time", self._clock())
        except StoreError as exc:
            replica.rest(exc.message, self._clock())
        return None

    def _fresh(self, place: Place) -> Replica | None:
        """The next replica that is fresh enough; each in its turn."""
        now = self._clock()
        lag = self._lag if self.notices.holds else min(self._lag, _UNHEARD_SECONDS)
        oldest = max(now - lag, self._changed_at(place))
        fresh = [
            one for one in self.replicas if one.fresh_as_of >= oldest and now >= one.rests_until
        ]
        self._turn += 1
        return fresh[self._turn % len(fresh)] if fresh else None

    def _changed_at(self, place: Place) -> float:
        """As of when a replica must be fresh to know the last change that is known here."""
        changed = self._changed.get((place.tenant, place.policy_id), _NEVER)
        return max(self._not_before, changed)

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
