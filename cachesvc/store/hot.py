"""The hot tier: what was found a moment ago, found again without a query.

Kept are what a query has found, the answers that were served, and whole cells (`hot_cells.py`). How
long they may be trusted is told in `copies.py`.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from cachesvc.store.base import UNREAD, ExactQuery, Found
from cachesvc.store.copies import Copies, Copy, Trust
from cachesvc.store.hot_cells import HotCells, cell_of
from cachesvc.store.layers import Layer
from cachesvc.store.notices import change_of, since_boot

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from uuid import UUID

    from cachesvc.core.model import Answer
    from cachesvc.store.base import Alias, NearestQuery, NewEntry, Place, PolicyRow, Stored
    from cachesvc.store.layers import LayeredStore
    from cachesvc.store.notices import Notices

_OVERHEAD_BYTES = 2048  # of a copy without its candidates: keys and marks
_CANDIDATE_BYTES = 768  # of each, without its answer
_REVISIONS_AT_MOST = 10_000  # of policies; beyond it none is known


class HotStore(Layer):
    """Repeated hits come from memory, all else from the store behind it.

    `notices` tell its `heard` of changes. At most `most_bytes` of copies are kept, those that are
    asked for most, none longer than `ttl_seconds`.
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
        self._trust = Trust(notices, ttl_seconds=ttl_seconds, clock=clock)
        # Each has its own half: next to many small ones that are asked for, no cell would stay.
        self.copies = Copies(self._trust, most_bytes // 2)
        cells = Copies(self._trust, most_bytes // 2)
        self.cells = HotCells(cells, self._known_answer, store.whole_cell)
        self._clock = clock
        self._revisions: dict[tuple[str, str], int] = {}
        self.notices = notices
        self.hits = {"exact": 0, "semantic": 0}

    def heard(self, payload: str | None) -> None:
        super().heard(payload)
        change = None if payload is None else change_of(payload)
        if change is None:
            self._trust.forget()
            self.copies.clear()
            self.cells.copies.clear()
        elif change.entry_ids is None:
            self._trust.touch((change.tenant, change.policy_id))
        else:
            self._trust.touch(*change.entry_ids)

    @property
    def weight(self) -> int:
        """Bytes of all copies."""
        return self.copies.weight + self.cells.copies.weight

    @property
    def number(self) -> int:
        """Of all copies."""
        return self.copies.number + self.cells.copies.number

    async def settled(self) -> None:
        await self.notices.settled()
        await super().settled()

    async def close(self) -> None:
        """Nothing is read in the background any more."""
        await self.cells.close()

    async def policy(self, tenant: str, policy_id: str) -> PolicyRow | None:
        row = await self._store.policy(tenant, policy_id)
        key, revision = (tenant, policy_id), None if row is None else row.revision
        if revision is None or revision != self._revisions.get(key):
            # Seen before it was heard. A copy of before would be judged under a policy of after.
            self._trust.touch(key)
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
        elif age is None:
            tier, found = "semantic", self._recall(_nearest_key(query)) or self._in_cell(query)
        else:
            return None  # of those nearest, the young ones may be others
        if found is None or not found.candidates:
            return None
        self.hits[tier] += 1
        return found

    def _in_cell(self, query: NearestQuery) -> Found | None:
        found = self.cells.find(query)
        # Its answer is to be read: that takes a query.
        return None if found is None or found.candidates[0].answer is UNREAD else found

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
        if query.max_age_seconds is not None:
            return await self._store.find_nearest(query)
        known = self._recall(_nearest_key(query)) or self.cells.find(query)
        if known is not None:
            self.hits["semantic"] += 1
            return known
        self.cells.wanted(query)
        sent = self._clock()
        found = await self._store.find_nearest(query)
        if _answers(found, query.served_from):
            self._keep(_nearest_key(query), found, sent, cell_of(query))
            self.cells.searched(query)
        return found

    async def answer(self, place: Place, entry_id: UUID) -> Answer | None:
        known = self._known_answer(place, entry_id)
        if known is not None:
            return known
        sent = self._clock()
        answer = await self._store.answer(place, entry_id)
        if answer is None:
            # It went unheard: no copy may name it any more.
            self._trust.touch(str(entry_id))
        else:
            marks = (place.tenant, place.policy_id), str(entry_id)
            weight = _OVERHEAD_BYTES + len(answer.body)
            self.copies.keep(("answer", place, entry_id), Copy(answer, sent, marks, weight))
        return answer

    def _known_answer(self, place: Place, entry_id: UUID) -> Answer | None:
        """Who asks knows that the entry lives, as far as its time goes."""
        copy = self.copies.get(("answer", place, entry_id))
        answer: Answer | None = None if copy is None else copy.value
        return answer

    async def put(self, entry: NewEntry) -> Stored:
        replaced = kept = True  # as far as is known, also where it fails
        try:
            stored = await self._store.put(entry)
            replaced, kept = stored.replaced, stored.entry_id is not None
        finally:
            if entry.exact_key is not None:
                self._trust.touch((entry.place, entry.exact_key))
            if entry.vector is not None and kept:
                # It may be nearer than what was found before.
                cell = entry.place, entry.space, entry.partition, entry.vector.size
                self._trust.touch(cell)
                self.cells.put(cell, entry.vector, replaced=replaced)
        if stored.replaced:
            await self.notices.settled()
        return stored

    async def add_aliases(self, aliases: Sequence[Alias]) -> None:
        await self._store.add_aliases(aliases)
        self._trust.touch(*((alias.place, alias.exact_key) for alias in aliases))

    def _recall(self, key: Hashable) -> Found | None:
        """What was found, where that may be trusted, with its clock set to now.

        It answers nobody once one of its candidates has expired: what has come into the place of a
        dead entry nobody is told of.
        """
        copy = self.copies.get(key)
        if copy is None:
            return None
        old: Found
        old, expires_at = copy.value
        now = self._trust.now(old.now, copy.sent)
        if now >= expires_at:
            return None
        return Found(old.revision, old.generation, now, old.candidates, old.dead)

    def _keep(self, key: Hashable, found: Found, sent: float, mark: tuple[Any, ...]) -> None:
        place: Place = mark[0]
        candidates = found.candidates
        marks = ((place.tenant, place.policy_id), mark, *(str(one.entry_id) for one in candidates))
        weight = _OVERHEAD_BYTES
        weight += sum(_CANDIDATE_BYTES + len(one.answer.body) for one in candidates)
        expires_at = min(one.expires_at for one in candidates)
        # What a replica found is as old as the replica may be.
        self.copies.keep(key, Copy((found, expires_at), sent - found.behind, marks, weight))


def _exact_key(query: ExactQuery) -> Hashable:
    return "exact", query.place, query.exact_key, query.space, query.partition


def _nearest_key(query: NearestQuery) -> Hashable:
    vector = hashlib.sha256(query.vector.tobytes()).digest()
    return "semantic", cell_of(query), vector, query.top_k, query.served_from


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
