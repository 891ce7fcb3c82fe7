"""Cells that are searched often, kept whole: a wording never asked before needs no query, either.

What another replica puts meanwhile may be missed, as long as a copy lives; what this one puts is
not, though the copy does not have it: where it may be nearer, the database is asked. A miss is
never told from memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from cachesvc.deadline import Overdue, Within
from cachesvc.errors import StoreError
from cachesvc.store.base import Found
from cachesvc.store.copies import Copy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from uuid import UUID

    from cachesvc.core.model import Answer, Candidate
    from cachesvc.core.vectors import Vector
    from cachesvc.store.base import NearestQuery, Place
    from cachesvc.store.copies import Copies
    from cachesvc.store.whole import WholeCell

    Cell = tuple[Place, str, bytes, int]
    Read = Callable[[NearestQuery], Coroutine[Any, Any, WholeCell | None]]

log = logging.getLogger("cachesvc.store")

# A reading of all costs what eight searches do: where copies live for no time at all, half as much
# again is spent on them.
_SEARCHES = 16
_CELLS_AT_MOST = 10_000  # whose searches are counted
_PAUSE = 16 * _SEARCHES  # more than that, once a cell could not be read or kept
_PATIENCE_SECONDS = 0.25  # for a reading
_NEWER_AT_MOST = 32  # puts; after more of them it is time to read all anew
_SHARE = 4  # no cell takes more than a quarter of the memory
_ROUNDING = 0.002  # between a vector as it was put and its halves
_OVERHEAD_BYTES = 4096


class _Kept:
    """A cell, the vectors that were put since then, and what was asked for last."""

    __slots__ = ("_last", "newer", "whole")

    def __init__(self, whole: WholeCell) -> None:
        self.whole = whole
        self.newer: list[Vector] = []
        self._last: tuple[Vector, int, list[Candidate]] | None = None

    def nearest(self, query: NearestQuery) -> list[Candidate]:
        """A lookup asks more than once for the same."""
        last = self._last
        if last is None or last[0] is not query.vector or last[1] != query.top_k:
            last = query.vector, query.top_k, self.whole.nearest(query)
            self._last = last
        return last[2]


class HotCells:
    """Whole cells. `answer` tells a known answer, without waiting."""

    def __init__(self, copies: Copies, answer: Callable[[Place, UUID], Answer | None]) -> None:
        self.copies = copies
        self.reads = dict.fromkeys(("kept", "not_kept", "too_large", "failed"), 0)
        self._trust = copies.trust
        self._answer = answer
        # How many searches of a cell went to the database, and since when.
        self._searches: OrderedDict[Cell, tuple[int, float]] = OrderedDict()

    def find(self, query: NearestQuery) -> Found | None:
        """What is near, where the first of it surely is what a search would serve; else None."""
        copy = self.copies.get(_key(cell_of(query)))
        if copy is None:
            return None
        kept: _Kept = copy.value
        candidates = kept.nearest(query)
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
        return self._with_answer(query.place, found)

    def searched(self, query: NearestQuery) -> None:
        """A search of the cell had to ask the database, and found what memory might have told."""
        if not self._trust.notices.holds:
            return
        cell, now = cell_of(query), self._trust.clock()
        number, since = self._searches.pop(cell, (0, now))
        if number >= 0 and now - since > self._trust.ttl:
            number, since = 0, now
        self._searches[cell] = number + 1, since
        if len(self._searches) > _CELLS_AT_MOST:
            self._searches.popitem(last=False)

    def due(self, query: NearestQuery) -> bool:
        """Whether to read all of the cell, after so many searches: then for nobody else again."""
        cell = cell_of(query)
        if self._searches.get(cell, (0, 0.0))[0] < _SEARCHES or not self._trust.notices.holds:
            return False
        del self._searches[cell]
        return True

    async def read(self, query: NearestQuery, read: Read) -> Found | None:
        """Read all of the cell and keep it; what is near in it, or None where it was not read.

        Not kept is what may lack a put of meanwhile. Raises NotFound without a policy.
        """
        cell, sent = cell_of(query), self._trust.clock()
        done = False
        try:
            # Who asks has time left for a search where this takes too long.
            whole = await Within(_PATIENCE_SECONDS, read(query))
            done = True
        except Overdue:
            return None
        except StoreError as exc:
            log.warning("a cell could not be read into memory: %s", exc.message)
            return None
        finally:
            if not done:
                self._pause(cell, "failed")
        if whole is None:
            self._pause(cell, "too_large")
            return None
        kept = _Kept(whole)
        weight = _OVERHEAD_BYTES + whole.weight + _NEWER_AT_MOST * 8 * query.vector.size
        marks = (query.place.tenant, query.place.policy_id), _key(cell)
        copy = Copy(kept, sent, marks, weight)
        if weight > self.copies.most_bytes // _SHARE:
            self._pause(cell, "too_large")
        elif not self._trust.stands(sent, (cell,)):
            self.reads["not_kept"] += 1
        elif self.copies.keep(_key(cell), copy):
            self.reads["kept"] += 1
        else:
            self._pause(cell, "not_kept")
        found = self._found(whole, kept.nearest(query), copy)
        return self._with_answer(query.place, found)

    def _pause(self, cell: Cell, outcome: str) -> None:
        self.reads[outcome] += 1
        self._searches[cell] = -_PAUSE, self._trust.clock()

    def put(self, cell: Cell, vector: Vector, *, replaced: bool) -> None:
        """There is one more in the cell, in the place of another or not."""
        copy = self.copies.untrusted(_key(cell))
        if copy is None:
            return
        kept: _Kept = copy.value
        if replaced or len(kept.newer) >= _NEWER_AT_MOST:
            self._trust.touch(_key(cell))
        else:
            kept.newer.append(vector)

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


def _key(cell: Cell) -> Hashable:
    return "cell", cell
