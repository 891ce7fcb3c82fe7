"""Which cells are too large to be scanned, as far as this process knows, and what waits in them.

An entry of a small cell has no place in the HNSW index: it is found by scanning its cell, and costs
no walk through a graph when it is put. Once a cell has outgrown scanning, what is put into it is
indexed at once, and what it had before bit by bit. Nothing of this decides what is found: a search
counts for itself how large a cell is, and scans what waits in it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from pgvector import HalfVector

from cachesvc.core.cells import code_of
from cachesvc.store.patience import patient
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from cachesvc.store.pool import Database

T = TypeVar("T")

_REMEMBERED = 100_000
# So few rows that wait cost a search next to nothing; more are worth being indexed.
_FEW_WAITING = 100


class LargeCells:
    """What searches and puts of this process have learnt of cells, each by its name."""

    def __init__(self) -> None:
        self._large: OrderedDict[bytes, None] = OrderedDict()
        self._puts: OrderedDict[bytes, int] = OrderedDict()
        self._crowded: OrderedDict[bytes, str] = OrderedDict()

    def __contains__(self, cell: bytes) -> bool:
        return cell in self._large

    def found(self, cell: bytes, *, large: bool) -> None:
        """A search has counted it."""
        self._puts.pop(cell, None)
        if large:
            _remember(self._large, cell, None)
        else:
            self._large.pop(cell, None)

    def waiting(self, tenant: str, cell: bytes, rows: int) -> None:
        """A search has scanned so many rows of this large cell."""
        if rows > _FEW_WAITING:
            _remember(self._crowded, cell, tenant)

    def put(self, cell: bytes, most: int) -> None:
        """One more row since the last search: after `most` the cell is believed large."""
        if cell in self._large:
            return
        rows = self._puts.get(cell, 0) + 1
        _remember(self._puts, cell, rows)
        if rows > most:
            self.found(cell, large=True)

    def crowded(self) -> tuple[str, bytes] | None:
        """Tenant and name of a cell with rows to be indexed; its turn comes again last."""
        if not self._crowded:
            return None
        cell, tenant = self._crowded.popitem(last=False)
        self._crowded[cell] = tenant
        return tenant, cell

    def done(self, cell: bytes) -> None:
        """Nothing of it waits any more."""
        self._crowded.pop(cell, None)


async def index_waiting(database: Database, cells: LargeCells, limit: int) -> int:
    """Index up to `limit` rows that wait in one large cell: how many. Raises StoreError.

    Rows that somebody is changing just now are left for later.
    """
    crowded = cells.crowded()
    if crowded is None:
        return 0
    tenant, cell = crowded
    async with patient(database) as connection:
        indexed: int = await connection.fetchval(
            statement("index_waiting"), tenant, cell, HalfVector(code_of(cell)), limit
        )
    if not indexed:
        cells.done(cell)
    return indexed


def _remember(known: OrderedDict[bytes, T], cell: bytes, value: T) -> None:
    known[cell] = value
    known.move_to_end(cell)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
