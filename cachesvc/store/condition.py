"""In what condition the tables are: what is dead, what is too large, what the planner believes."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesvc.core.cells import CODE_DIMENSIONS
from cachesvc.store.faults import foreign_errors_as_ours
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_PAGE_BYTES = 8192
_USABLE_BYTES = 8100
_ROW_OVERHEAD = 28
_SAMPLED_ROWS = 50_000
_WALKED = re.compile(r"leaves_by_vector_([0-9]+)")
# An element of pgvector's HNSW (src/hnsw.h): ten heap pointers, level, deleted and version, the
# vector's own header; and its neighbours, (level + 2) * m pointers of 6 bytes, at m = 16.
_ELEMENT_BYTES, _NEIGHBOUR_BYTES = 92, 200
_KEY_BYTES = 500  # a long key with its pointers, in a B-tree whose pages are two thirds full
_SLACK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the server's statistics tell it; `analyzed_at` is None where they tell of none."""

    name: str
    live: int
    dead: int
    changed: int  # rows, since it was analyzed
    analyzed_at: datetime | None
    bytes: int
    row_bytes: float | None
    vacuumed_by_server: bool
    vacuumed_by_table: bool

    @property
    def packed_bytes(self) -> int:
        """What its live rows would take in a new table; 0 where that is not known."""
        width = self.row_bytes
        return 0 if width is None else int(self.live * (width + _ROW_OVERHEAD))


@dataclass(frozen=True, slots=True)
class Index:
    """`rows` as of the last vacuum; `walked` is an HNSW index."""

    name: str
    valid: bool
    walked: bool
    rows: int
    bytes: int

    @property
    def packed_bytes(self) -> int:
        """About what it would take if it were built anew."""
        dimensions = _WALKED.fullmatch(self.name)
        if not self.walked or dimensions is None:
            return self.rows * _KEY_BYTES
        vector = (int(dimensions[1]) + CODE_DIMENSIONS) * 2
        one = _ELEMENT_BYTES + vector + _NEIGHBOUR_BYTES
        return -(-self.rows // max(1, _USABLE_BYTES // one)) * _PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Condition:
    """`dimensions` are those that stored vectors have; `newer_pgvector` waits for an ALTER."""

    tables: tuple[Table, ...]
    indexes: tuple[Index, ...]
    dimensions: tuple[int, ...]
    newer_pgvector: str | None

    @property
    def bytes(self) -> int:
        """Of all tables, but what they keep out of line, and all indexes."""
        return sum(table.bytes for table in self.tables) + sum(i.bytes for i in self.indexes)

    def bloated(self) -> Iterator[Table | Index]:
        """What is more than twice as large as it would be, and worth the while."""
        both: tuple[Table | Index, ...] = (*self.tables, *self.indexes)
        for one in both:
            if one.packed_bytes and one.bytes > 2 * one.packed_bytes + _SLACK_BYTES:
                yield one


def condition(url: str) -> Condition:
    """Raises StoreUnavailable when the database is away, or has no schema of ours."""
    return asyncio.run(_condition(url))


async def _condition(url: str) -> Condition:
    with foreign_errors_as_ours():
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            return await _look(connection)
        finally:
            await connection.close()


async def _look(connection: Any) -> Condition:
    tables = [Table(**dict(row)) for row in await connection.fetch(statement("table_conditions"))]
    indexes = [Index(**dict(row)) for row in await connection.fetch(statement("index_conditions"))]
    live = max((table.live for table in tables if table.name == "entries"), default=0)
    percent = min(100.0, 100 * _SAMPLED_ROWS / max(1, live))
    used = await connection.fetch(statement("dimensions_in_use"), percent)
    return Condition(
        tuple(tables),
        tuple(indexes),
        tuple(row["dimensions"] for row in used),
        await connection.fetchval(statement("newer_pgvector")),
    )
