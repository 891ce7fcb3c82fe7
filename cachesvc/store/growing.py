"""What searches and puts of this process have learnt of cells: hints, which decide nothing.

A search counts for itself whether its cell is split; a put finds its leaf. What is remembered here
saves a statement, and tells which leaf may have grown too large.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_REMEMBERED = 100_000
# A scan's time goes by the rows and by the bytes it reads: up to here about 3 ms.
_SCANNED_VALUES = 384_000
_FEWEST_SCANNED, _MOST_SCANNED = 250, 1000
_QUIET_SECONDS = 60.0
_LEAVES_SCANNED = 4  # as large as a cell that is not split


class Bounds(NamedTuple):
    """How many rows a cell that is not split, and how many a leaf, may have."""

    cell: int
    leaf: int

    @classmethod
    def of(cls, dimensions: int) -> Bounds:
        rows = max(_FEWEST_SCANNED, min(_MOST_SCANNED, _SCANNED_VALUES // dimensions))
        return cls(rows, rows // _LEAVES_SCANNED)


class GrowingLeaves:
    """Which cells are split, and which leaves, or cells that are not, have seen many puts."""

    def __init__(self, bounds: Callable[[int], Bounds] = Bounds.of) -> None:
        """`bounds` tells by the dimensions how much is scanned."""
        self.bounds = bounds
        self._split: OrderedDict[bytes, None] = OrderedDict()
        self._puts: OrderedDict[bytes, int] = OrderedDict()
        self._crowded: OrderedDict[bytes, str] = OrderedDict()
        self._done: OrderedDict[bytes, float] = OrderedDict()
        self.moved = 0  # rows, into leaves nearer to them

    def is_split(self, cell: bytes) -> bool:
        return cell in self._split

    def found(self, cell: bytes, *, split: bool) -> None:
        """A search has seen it."""
        if split:
            _remember(self._split, cell, None)
        else:
            self._split.pop(cell, None)

    def put(self, tenant: str, leaf: bytes, dimensions: int) -> None:
        """One more row went there; after half of what a leaf may have it is looked at."""
        rows = self._puts.get(leaf, 0) + 1
        if rows < self.bounds(dimensions).leaf // 2:
            _remember(self._puts, leaf, rows)
        else:
            self._puts.pop(leaf, None)
            self.add(tenant, leaf)

    def searched(self, tenant: str, cell: bytes) -> None:
        """A search found it too large; it is looked at, but not again and again."""
        if time.monotonic() - self._done.get(cell, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self.add(tenant, cell)

    def add(self, tenant: str, leaf: bytes) -> None:
        """It may be too large."""
        if leaf not in self._crowded:
            _remember(self._crowded, leaf, tenant)

    def crowded(self) -> tuple[str, bytes] | None:
        """Tenant and name of one that may be too large, the same one until it is done."""
        for leaf, tenant in self._crowded.items():
            return tenant, leaf
        return None

    def later(self, leaf: bytes) -> None:
        """Nothing of it can be moved just now: others have their turn first."""
        if leaf in self._crowded:
            self._crowded.move_to_end(leaf)

    @property
    def waiting(self) -> int:
        """How many are to be looked at."""
        return len(self._crowded)

    def done(self, leaf: bytes) -> None:
        self._crowded.pop(leaf, None)
        _remember(self._done, leaf, time.monotonic())


def _remember(known: OrderedDict[bytes, T], name: bytes, value: T) -> None:
    known[name] = value
    known.move_to_end(name)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
