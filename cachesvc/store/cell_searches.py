"""How often each cell is searched: when reading all of it into memory is worth it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

# A reading of all costs what six to twelve searches do: where copies live for no time at all, less
# than as much again is spent on them.
ENOUGH = 16
_CELLS_AT_MOST = 10_000  # whose searches are counted
_LONGEST_PAUSE = 16 * ENOUGH


class _Count(NamedTuple):
    """Searches, less those of a pause; when the first was; readings in a row that came too late."""

    number: int
    since: float
    late: int


class Searches:
    """Searches that went to the database, and found what memory might have told."""

    def __init__(self, ttl_seconds: float, clock: Callable[[], float]) -> None:
        """Enough of them within `ttl_seconds` are enough."""
        self._ttl = ttl_seconds
        self._clock = clock
        self._counts: OrderedDict[Hashable, _Count] = OrderedDict()

    def add(self, cell: Hashable) -> None:
        number, since, late = self._count(cell)
        self._set(cell, number + 1, since, late)

    def enough(self, cell: Hashable) -> bool:
        """Whether to read all of the cell now: then for nobody else again."""
        number, since, late = self._count(cell)
        if number < ENOUGH:
            return False
        self._set(cell, 0, since, late)
        return True

    def worth_it(self, cell: Hashable) -> None:
        """What was read has answered as many lookups."""
        self._counts.pop(cell, None)

    def too_late(self, cell: Hashable) -> None:
        """What was read has changed too soon: the next time it is read after more searches."""
        late = self._count(cell).late
        self._set(cell, -min(_LONGEST_PAUSE, ENOUGH << late), self._clock(), min(late + 1, 8))

    def pause(self, cell: Hashable) -> None:
        """It cannot be kept, or hardly answers: it is long until it is read again."""
        self._set(cell, -_LONGEST_PAUSE, self._clock(), self._count(cell).late)

    def _count(self, cell: Hashable) -> _Count:
        now = self._clock()
        count = self._counts.get(cell, _Count(0, now, 0))
        if count.number >= 0 and now - count.since > self._ttl:
            return _Count(0, now, count.late)
        return count

    def _set(self, cell: Hashable, number: int, since: float, late: int) -> None:
        self._counts[cell] = _Count(number, since, late)
        self._counts.move_to_end(cell)
        if len(self._counts) > _CELLS_AT_MOST:
            self._counts.popitem(last=False)
