"""The hot tier: what was found a moment ago, found again without a query.

A copy answers only while the lease of `notices.py` holds, so it is never older than a change that
another replica made more than a second ago; and never after its TTL. The database's clock goes on
counting: a copy's `now` is the reading's, plus the time since the reading was *sent*, so nothing
lives longer here than there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from moka_py import Moka
from msgspec import Struct
from msgspec.structs import replace

from cachesvc.store.base import UNREAD, ExactQuery, Found
from cachesvc.store.layers import Layer
from cachesvc.store.notices import change_of, since_boot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachesvc.store.base import Alias, NearestQuery, NewEntry, Place, PolicyRow, Stored
    from cachesvc.store.layers import LayeredStore
    from cachesvc.store.notices import Notices

_OVERHEAD_BYTES = 2048  # of a copy without its candidates: keys and marks
_CANDIDATE_BYTES = 768  # of each, without its answer
_MARKS_AT_MOST = 100_000  # changes remembered; beyond it everything is forgotten
_REVISIONS_AT_MOST = 10_000  # of policies; beyond it none is known


class _Copy(Struct, frozen=True):
    """What one query found, when it was sent, and the names of what it depends on.

    It answers nobody from `expires_at` on, by the database's clock: what has come into the place
    of a dead entry is nobody told of.
    """

    found: Found
    sent: float
    expires_at: datetime
    marks: tuple[Hashable, ...]
    weight: int


class HotStore(Layer):
    """Repeated hits come from memory, all else from the store behind it.

    `notices` tell its `heard` of changes. At most `most_bytes` of copies are kept, those that are
    asked for most (W-TinyLFU: Einziger, Friedman, Manes, ACM TOS 2017), none longer than
    `ttl_seconds`.
    """

    def __init__(
        self,
        store: LayeredStore,
        notices: Notices,
        *,
        most_bytes: int,
        ttl_seconds: float,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        super().__init__(store)
        self._ttl = ttl_seconds
        self._most_bytes = most_bytes
        self._clock = clock
        self._copies: Moka[Hashable, _Copy] = Moka(
            most_bytes, ttl=ttl_seconds, weigher=lambda _, copy: copy.weight
        )
        # When each of these changed last: a copy read before then is none.
        self._changed: dict[Hashable, float] = {}
        self._all_changed = clock()
        self._revisions: dict[tuple[str, str], int] = {}
        self.notices = notices
        self.hits = {"exact": 0, "semantic": 0}

    @property
    def weight(self) -> int:
        """Bytes of all copies."""
        self._copies.run_pending_tasks()
        return self._copies.weighted_size()

    @property
    def entries(self) -> int:
        self._copies.run_pending_tasks()
        return self._copies.count()

    def heard(self, payload: str | None) -> None:
        super().heard(payload)
        change = None if payload is None else change_of(payload)
        if change is None:
            self._forget()
        elif change.entry_ids is None:
            self._touch((change.tenant, change.policy_id))
        else:
            self._touch(*change.entry_ids)

    def _forget(self) -> None:
        self._all_changed = self._clock()
        self._changed.clear()
        self._copies.clear()

    async def settled(self) -> None:
        await self.notices.settled()
        await super().settled()

    async def policy(self, tenant: str, policy_id: str) -> PolicyRow | None:
        row = await self._store.policy(tenant, policy_id)
        key, revision = (tenant, policy_id), None if row is None else row.revision
        if revision is None or revision != self._revisions.get(key):
            # Seen before it was heard. A copy of before would be judged under a policy of after.
            self._touch(key)
            if len(self._revisions) >= _REVISIONS_AT_MOST:
                self._revisions.clear()
        if revision is not None:
            self._revisions[key] = revision
        return row

    def recall(self, query: ExactQuery | NearestQuery) -> Found | None:
        age = query.max_age_seconds
        if isinstance(query, ExactQuery):
            tier, found = "exact", self._recall(_exact_key(query))
            if found is not None and age is not None:
                found = _young(found, age)
        else:
            # Of those nearest, the young ones may be others.
            tier, found = "semantic", self._recall(_nearest_key(query)) if age is None else None
        if found is None or not found.candidates:
            return None
        self.hits[tier] += 1
        return found

    async def find_exact(self, query: ExactQuery) -> Found:
        known = self.recall(query)
        if known is not None:
            return known
        sent = self._clock()
        found = await self._store.find_exact(query)
        if found.candidates and query.max_age_seconds is None:
            self._keep(_exact_key(query), found, sent, (query.place, query.exact_key))
        return found

    async def find_nearest(self, query: NearestQuery) -> Found:
        known = self.recall(query)
        if known is not None:
            return known
        sent = self._clock()
        found = await self._store.find_nearest(query)
        if query.max_age_seconds is None and _answers(found, query.served_from):
            self._keep(_nearest_key(query), found, sent, _cell(query))
        return found

    async def put(self, entry: NewEntry) -> Stored:
        stored = await self._store.put(entry)
        if entry.exact_key is not None:
            self._touch((entry.place, entry.exact_key))
        if entry.vector is not None:
            # It may be nearer than what was found before.
            self._touch((entry.place, entry.space, entry.partition, entry.vector.size))
        if stored.replaced:
            await self.notices.settled()
        return stored

    async def add_aliases(self, aliases: Sequence[Alias]) -> None:
        await self._store.add_aliases(aliases)
        self._touch(*((alias.place, alias.exact_key) for alias in aliases))

    def _recall(self, key: Hashable) -> Found | None:
        """What was found, where that may be trusted, with its clock set to now."""
        if not self.notices.holds:
            return None
        copy = self._copies.get(key)
        if copy is None:
            return None
        clock, sent = self._clock(), copy.sent
        if clock - sent > self._ttl or sent <= self._all_changed:
            return None
        changed = self._changed
        if changed:
            for mark in copy.marks:
                if changed.get(mark, sent) > sent:
                    return None
        old = copy.found
        now = old.now + timedelta(seconds=clock - sent)
        if now >= copy.expires_at:
            return None
        return Found(old.revision, old.generation, now, old.candidates, old.dead)

    def _keep(self, key: Hashable, found: Found, sent: float, mark: tuple[Any, ...]) -> None:
        place: Place = mark[0]
        candidates = found.candidates
        marks = ((place.tenant, place.policy_id), mark, *(str(one.entry_id) for one in candidates))
        weight = _OVERHEAD_BYTES
        weight += sum(_CANDIDATE_BYTES + len(one.answer.body) for one in candidates)
        if weight > self._most_bytes:
            return
        expires_at = min(one.expires_at for one in candidates)
        # What a replica found is as old as the replica may be.
        sent -= found.behind
        self._copies.set(key, _Copy(found, sent, expires_at, marks, weight))
        # Moka makes room when it comes to it, and until then holds several times as much.
        self._copies.run_pending_tasks()

    def _touch(self, *marks: Hashable) -> None:
        now = self._clock()
        for mark in marks:
            self._changed.pop(mark, None)
            self._changed[mark] = now  # the newest last
        while self._changed:
            mark, when = next(iter(self._changed.items()))
            if now - when <= self._ttl:
                break
            del self._changed[mark]
        if len(self._changed) > _MARKS_AT_MOST:
            self._forget()


def _exact_key(query: ExactQuery) -> Hashable:
    return "exact", query.place, query.exact_key, query.space, query.partition


def _cell(query: NearestQuery) -> tuple[Place, str, bytes, int]:
    return query.place, query.space, query.partition, query.vector.size


def _nearest_key(query: NearestQuery) -> Hashable:
    vector = hashlib.sha256(query.vector.tobytes()).digest()
    return "semantic", _cell(query), vector, query.top_k, query.served_from


def _answers(found: Found, served_from: float) -> bool:
    """Whether the nearest candidate is a hit. It is read a little early, and not for that one."""
    if not found.candidates:
        return False
    nearest = found.candidates[0]
    return nearest.answer is not UNREAD and (nearest.similarity or 0.0) >= served_from


def _young(found: Found, max_age_seconds: float) -> Found:
    """What was found, without candidates that are older than is asked for."""
    oldest = found.now - timedelta(seconds=max_age_seconds)
    young = tuple(one for one in found.candidates if one.created_at >= oldest)
    return replace(found, candidates=young)
