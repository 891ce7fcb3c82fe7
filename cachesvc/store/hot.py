"""The hot tier: what was found a moment ago, found again without a query.

A copy answers only while the lease of `notices.py` holds, so it is never older than a change that
another replica made more than a second ago; and never after its TTL. The database's clock goes on
counting: a copy's `now` is the reading's, plus the time since the reading was *sent*, so nothing
lives longer here than there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from moka_py import Moka

from cachesvc.store.base import UNREAD, Found
from cachesvc.store.notices import Notices

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from uuid import UUID

    from cachesvc.core.model import Answer
    from cachesvc.store.base import (
        EntryStore,
        ExactQuery,
        NearestQuery,
        NewEntry,
        Place,
        PolicyRow,
        Stored,
    )

_OVERHEAD_BYTES = 2048  # of a copy without its answers: keys, marks, candidates
_MARKS_AT_MOST = 100_000  # changes remembered; beyond it everything is forgotten
_Change = list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Copy:
    """What one query found, when it was sent, and the names of what it depends on."""

    found: Found
    sent: float
    marks: tuple[Hashable, ...]
    weight: int


class HotStore:
    """An EntryStore in front of another: repeated hits come from memory, all else goes through.

    `url` leads straight to the database. At most `most_bytes` of copies are kept, those that are
    asked for most (W-TinyLFU: Einziger, Friedman, Manes, ACM TOS 2017), none longer than
    `ttl_seconds`.
    """

    def __init__(
        self,
        store: EntryStore,
        url: str,
        *,
        most_bytes: int,
        ttl_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ttl = ttl_seconds
        self._clock = clock
        self._copies: Moka[Hashable, _Copy] = Moka(
            most_bytes, ttl=ttl_seconds, weigher=lambda _, copy: copy.weight
        )
        # When each of these changed last: a copy read before then is none.
        self._changed: dict[Hashable, float] = {}
        self._all_changed = clock()
        self.notices = Notices(url, self._heard, clock=clock)
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

    def _heard(self, payload: str | None) -> None:
        """A change: JSON of [tenant, policy], or [tenant, policy, [entry ids]]; None: anything."""
        if payload is None:
            self._all_changed = self._clock()
            self._changed.clear()
            self._copies.clear()
            return
        change = msgspec.json.decode(payload, type=_Change)
        if len(change) == 2:
            self._touch(tuple(change))
        else:
            self._touch(*change[2])

    async def settled(self) -> None:
        """Wait until no copy is older than what is committed by now."""
        await self.notices.settled()

    async def policy(self, tenant: str, policy_id: str) -> PolicyRow | None:
        return await self._store.policy(tenant, policy_id)

    async def find_exact(self, query: ExactQuery) -> Found:
        key = ("exact", query.place, query.exact_key, query.space, query.partition)
        copy = self._copy(key)
        if copy is not None:
            found = _young(copy, query.max_age_seconds)
            if found.candidates:
                self.hits["exact"] += 1
                return found
        sent = self._clock()
        found = await self._store.find_exact(query)
        if found.candidates and query.max_age_seconds is None:
            self._keep(key, found, sent, (query.place, query.exact_key))
        return found

    async def find_nearest(self, query: NearestQuery) -> Found:
        if query.max_age_seconds is not None:
            return await self._store.find_nearest(query)
        vector = hashlib.sha256(query.vector.tobytes()).digest()
        cell = (query.place, query.space, query.partition, query.vector.size)
        key = ("semantic", cell, vector, query.top_k, query.served_from)
        copy = self._copy(key)
        if copy is not None:
            self.hits["semantic"] += 1
            return copy.found
        sent = self._clock()
        found = await self._store.find_nearest(query)
        if found.candidates and found.candidates[0].answer is not UNREAD:
            self._keep(key, found, sent, cell)
        return found

    async def answer(self, place: Place, entry_id: UUID) -> Answer | None:
        return await self._store.answer(place, entry_id)

    async def put(self, entry: NewEntry) -> Stored:
        stored = await self._store.put(entry)
        if entry.exact_key is not None:
            self._touch((entry.place, entry.exact_key))
        if entry.vector is not None:
            # It may be nearer than what was found before.
            self._touch((entry.place, entry.space, entry.partition, entry.vector.size))
        if stored.replaced:
            await self.settled()
        return stored

    async def add_alias(
        self,
        place: Place,
        exact_key: bytes,
        entry_id: UUID,
        similarity: float,
        revision: int | None = None,
    ) -> None:
        await self._store.add_alias(place, exact_key, entry_id, similarity, revision)
        self._touch((place, exact_key))

    def _copy(self, key: Hashable) -> _Copy | None:
        """A copy that may be trusted, with its clock set to now."""
        if not self.notices.holds:
            return None
        copy = self._copies.get(key)
        if copy is None:
            return None
        now, sent = self._clock(), copy.sent
        if now - sent > self._ttl or sent <= self._all_changed:
            return None
        changed = self._changed
        if changed and any(changed.get(mark, sent) > sent for mark in copy.marks):
            return None
        found = copy.found
        moved = dataclasses.replace(found, now=found.now + timedelta(seconds=now - sent))
        return dataclasses.replace(copy, found=moved)

    def _keep(self, key: Hashable, found: Found, sent: float, mark: tuple[Any, ...]) -> None:
        place: Place = mark[0]
        ids = (str(candidate.entry_id) for candidate in found.candidates)
        marks = ((place.tenant, place.policy_id), mark, *ids)
        weight = _OVERHEAD_BYTES + sum(len(one.answer.body) for one in found.candidates)
        self._copies.set(key, _Copy(found, sent, marks, weight))

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
            self._heard(None)


def _young(copy: _Copy, max_age_seconds: float | None) -> Found:
    """What was found, without candidates that are older than is asked for."""
    found = copy.found
    if max_age_seconds is None:
        return found
    oldest = found.now - timedelta(seconds=max_age_seconds)
    young = tuple(one for one in found.candidates if one.created_at >= oldest)
    return dataclasses.replace(found, candidates=young)
