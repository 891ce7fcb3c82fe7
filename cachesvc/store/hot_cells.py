"""Cells that are searched often, kept whole: a wording never asked before needs no query, either.

They are read beside the lookups, whether they are split into leaves or not, and all that lives in
them is compared: as much as takes less time here than a scan of a few leaves there.

What another replica puts meanwhile may be missed, as long as a copy lives; what this one puts is
not, though the copy does not have it: where it may be nearer, the database is asked. A miss is
never told from memory.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from cachesvc.deadline import Overdue, Within
from cachesvc.errors import NotFound, StoreError
from cachesvc.store.base import Found
from cachesvc.store.cell_searches import ENOUGH, Searches
from cachesvc.store.copies import Copy
from cachesvc.store.whole import row_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from uuid import UUID

    from numpy.typing import NDArray

    from cachesvc.core.model import Answer, Candidate
    from cachesvc.core.vectors import Vector
    from cachesvc.store.base import NearestQuery, Place
    from cachesvc.store.copies import Copies
    from cachesvc.store.whole import WholeCell

    Cell = tuple[Place, str, bytes, int]
    Read = Callable[[NearestQuery, int], Coroutine[Any, Any, WholeCell | None]]

log = logging.getLogger("cachesvc.store")

_NEWER_AT_MOST = 32  # puts; after more of them it is time to read all anew
_SHARE = 4  # no cell takes more than a quarter of the memory
# Nor more than are compared in half a millisecond, on the loop.
_VALUES_AT_MOST, _ROWS_AT_MOST = 2**21, 2**13
_PATIENCE_SECONDS = 1.0  # for a reading, its wait for a connection included
_CLOSING_SECONDS = 0.5
# After so many lookups it shows whether a copy answers: one that does not is in the way.
_TRIALS, _ANSWERED = 64, 1 / 8
_RENEWED = 0.6  # of its TTL: by then a copy that is asked for is read anew
_LAST = 16
_ROUNDING = 0.002  # between a vector as it was put and its halves
_OVERHEAD_BYTES, _FOUND_BYTES = 4096, 1536


class _Search:
    """What is near to a query, and whether it was told."""

    __slots__ = ("found", "query", "told")

    def __init__(self, query: NearestQuery, found: list[Candidate]) -> None:
        self.query = query
        self.found = found
        self.told = False


class _Kept:
    """A cell, the vectors that were put since then, and what was asked for last."""

    __slots__ = ("_last", "asked", "newer", "renewed", "told", "whole")

    def __init__(self, whole: WholeCell, newer: list[NDArray[np.float32]]) -> None:
        self.whole = whole
        self.newer = newer
        self.asked = self.told = 0
        self.renewed = False  # it was tried, once
        self._last: dict[Hashable, _Search] = {}

    def search(self, query: NearestQuery) -> _Search:
        """A lookup asks more than once for the same, and others ask in between."""
        # The vector is held, so nothing else has its id; the cell is the same already.
        asked = id(query.vector), query.top_k, query.served_from
        search = self._last.get(asked)
        if search is None:
            self.asked += 1
            search = self._last[asked] = _Search(query, self.whole.nearest(query))
            if len(self._last) > _LAST:
                del self._last[next(iter(self._last))]
        return search

    @property
    def in_the_way(self) -> bool:
        """It has hardly answered anything."""
        return self.asked >= _TRIALS and self.told < self.asked * _ANSWERED


@dataclass
class _Reading:
    """A cell that is being read, and the vectors that are put meanwhile: it may lack them."""

    cell: Cell
    query: NearestQuery
    newer: list[NDArray[np.float32]] = field(default_factory=list)
    spoiled: bool = False


class HotCells:
    """Whole cells. `answer` tells a known answer, without waiting."""

    def __init__(
        self, copies: Copies, answer: Callable[[Place, UUID], Answer | None], read: Read
    ) -> None:
        """`read` reads all of a cell."""
        self.copies = copies
        self.reads = dict.fromkeys(("kept", "changed", "not_kept", "too_large", "failed"), 0)
        self._trust = copies.trust
        self._answer = answer
        self._read_all = read
        self._searches = Searches(self._trust.ttl, self._trust.clock)
        self._reading: _Reading | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = self._failing = False

    def find(self, query: NearestQuery) -> Found | None:
        """What is near, where the first of it surely is what a search would serve; else None."""
        cell = cell_of(query)
        copy = self.copies.get(_key(cell))
        if copy is None:
            return None
        kept: _Kept = copy.value
        search = kept.search(query)
        candidates = search.found
        if kept.in_the_way:
            self.copies.drop(_key(cell))
            self._searches.pause(cell)
        best = (candidates[0].similarity or 0.0) if candidates else 0.0
        if best <= 0 or best < query.served_from:
            return None
        found = self._found(kept.whole, candidates, copy)
        if any(candidate.expires_at <= found.now for candidate in candidates):
            return None
        if not self._trust.stands(copy.sent, tuple(str(each.entry_id) for each in candidates)):
            return None
        least = best - _ROUNDING
        if any(float(np.dot(query.vector, vector)) >= least for vector in kept.newer):
            return None
        if not search.told:
            search.told = True
            self._told(kept, query, self._trust.clock() - copy.sent)
        return self._with_answer(query.place, found)

    def _told(self, kept: _Kept, query: NearestQuery, age: float) -> None:
        kept.told += 1
        if kept.told == ENOUGH:
            self._searches.worth_it(cell_of(query))
        old = age > _RENEWED * self._trust.ttl and kept.told >= ENOUGH
        if old and not kept.renewed and self._may_read(query):
            kept.renewed = True
            self._begin(query)

    def searched(self, query: NearestQuery) -> None:
        """A search of the cell had to ask the database, and found what memory might have told."""
        if self._trust.notices.holds:
            self._searches.add(cell_of(query))

    def wanted(self, query: NearestQuery) -> None:
        """Somebody searches: have all of the cell read after so many of them, and kept."""
        if self._may_read(query) and self._searches.enough(cell_of(query)):
            self._begin(query)

    def _may_read(self, query: NearestQuery) -> bool:
        """One cell is read at a time."""
        free = self._reading is None and not self._closed
        return free and self._trust.notices.holds and self._most_rows(query.vector.size) > 0

    def _begin(self, query: NearestQuery) -> None:
        """Nobody waits for it; while it lasts, an older copy answers."""
        self._reading = _Reading(cell_of(query), query)
        self._task = asyncio.create_task(self._read(self._reading))
        self._task.add_done_callback(_report)

    def _over(self) -> None:
        self._reading = None

    async def _read(self, reading: _Reading) -> None:
        sent, query = self._trust.clock(), reading.query
        outcome = "failed"
        try:
            read = self._read_all(query, self._most_rows(query.vector.size))
            # The next one begins when this one has really ended: it may hold a connection yet.
            whole = await Within(_PATIENCE_SECONDS, read, over=self._over)
            outcome = "too_large" if whole is None else self._keep(reading, whole, sent)
            self._failing = False
        except NotFound:
            outcome = "changed"  # the policy is gone
        except (StoreError, Overdue) as exc:
            if not self._failing:
                log.warning("a cell could not be read into memory: %s", type(exc).__name__)
            self._failing = True
        finally:
            self.reads[outcome] += 1
            if outcome == "changed":
                self._searches.too_late(reading.cell)
            elif outcome != "kept":
                self._searches.pause(reading.cell)

    def _most_rows(self, dimensions: int) -> int:
        room = self.copies.most_bytes // _SHARE - _weight(0, dimensions)
        rows = min(room // row_weight(dimensions), _VALUES_AT_MOST // dimensions)
        return min(rows, _ROWS_AT_MOST)

    def _keep(self, reading: _Reading, whole: WholeCell, sent: float) -> str:
        place, *_, dimensions = cell = reading.cell
        marks = ((place.tenant, place.policy_id),)
        if reading.spoiled or not self._trust.stands(sent, marks):
            return "changed"
        weight = _weight(whole.weight, dimensions)
        copy = Copy(_Kept(whole, reading.newer), sent, marks, weight)
        # Not kept is what is asked for less than all else.
        return "kept" if self.copies.keep(_key(cell), copy) else "not_kept"

    async def close(self) -> None:
        """Read nothing more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CLOSING_SECONDS)

    def put(self, cell: Cell, vector: Vector, *, replaced: bool) -> None:
        """There is one more in the cell, in the place of another or not."""
        copy = self.copies.untrusted(_key(cell))
        if copy is not None and not _lacks(copy.value.newer, vector, replaced=replaced):
            self.copies.drop(_key(cell))
            if copy.value.told < ENOUGH:
                self._searches.too_late(cell)
        reading = self._reading
        if reading is not None and reading.cell == cell:
            reading.spoiled |= not _lacks(reading.newer, vector, replaced=replaced)

    def _with_answer(self, place: Place, found: Found) -> Found:
        """With the first one's answer, where that is known."""
        if not found.candidates:
            return found
        first, *others = found.candidates
        answer = self._answer(place, first.entry_id)
        if answer is None:
            return found
        return replace(found, candidates=(replace(first, answer=answer), *others))

    def _found(self, whole: WholeCell, candidates: list[Candidate], copy: Copy) -> Found:
        now = self._trust.now(whole.now, copy.sent)
        return Found(whole.revision, whole.generation, now, tuple(candidates))


def cell_of(query: NearestQuery) -> Cell:
    return query.place, query.space, query.partition, query.vector.size


def _report(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("a cell could not be read into memory: %s", type(error).__name__)


def _lacks(newer: list[NDArray[np.float32]], vector: Vector, *, replaced: bool) -> bool:
    """Remember that a copy lacks this; False where too much is lacking, or has been replaced."""
    if replaced or len(newer) >= _NEWER_AT_MOST:
        return False
    newer.append(vector.astype(np.float32))
    return True


def _weight(rows: int, dimensions: int) -> int:
    """Of a copy, in bytes: its rows, the vectors that may be put, and what is asked for."""
    newer, last = _NEWER_AT_MOST * 4 * dimensions, _LAST * (8 * dimensions + _FOUND_BYTES)
    return _OVERHEAD_BYTES + rows + newer + last


def _key(cell: Cell) -> Hashable:
    return "cell", cell
