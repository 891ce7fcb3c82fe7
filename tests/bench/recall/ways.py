"""The ways to search that are compared: the store's own, and what others do."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector import HalfVector

from cachesvc.core.cells import CODE_DIMENSIONS, cell_of, code_of
from cachesvc.store.base import NearestQuery
from cachesvc.store.postgres import PostgresStore
from tests.bench.recall.data import DIMENSIONS, POLICY, SPACE, TENANT

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.core.vectors import Vector
    from cachesvc.store.base import Place
    from cachesvc.store.pool import Database

_EVERYTHING = 1_000_000_000
_BUILD = "m = 16, ef_construction = 200"
_ROWS = (
    "SELECT id FROM entries WHERE tenant = $2 AND policy_id = $3 AND scope = $4 AND space = $5"
    f" AND dimensions = {DIMENSIONS} AND semantic_expires_at > now() ORDER BY"
)


def _searched(code: int) -> str:
    """The indexed expression with so many dimensions of the code."""
    short = f"l2_normalize(subvector(drawn, 1, {code}))::halfvec"
    added = {0: "", CODE_DIMENSIONS: " || drawn"}.get(code, f" || {short}")
    return f"(embedding{added})::halfvec({DIMENSIONS + code})"


@dataclass(frozen=True)
class Way:
    """One way to search: settings of the connection, and what is asked.

    `code` is how many dimensions of the code are appended, in an index of all rows; None stands
    for the store's own statement and index, and `scanned` for another bound of its exact scan.
    """

    name: str
    code: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    scanned: int | None = None

    @property
    def query(self) -> str:
        size = DIMENSIONS + (self.code or 0)
        return f"{_ROWS} {_searched(self.code or 0)} <=> $1::halfvec({size}) LIMIT 4"

    @property
    def index(self) -> str | None:
        """The statement that makes its index; None where the store's own serves."""
        if self.code is None:
            return None
        built = f" WITH ({_BUILD})" if self.code else ""  # the usual one with pgvector's own values
        return (
            f"CREATE INDEX other ON entries USING hnsw (({_searched(self.code or 0)}) "
            f"halfvec_cosine_ops){built} WHERE dimensions = {DIMENSIONS}"
        )


def _hnsw(ef_search: int, scan: str) -> dict[str, str]:
    return {"hnsw.ef_search": str(ef_search), "hnsw.iterative_scan": scan}


_STRICT, _OFF = "strict_order", "off"
OURS = Way("cachesvc: small cells scanned, large ones walked with their code")
EXACT = Way("exact scan", scanned=_EVERYTHING)
WAYS = (
    EXACT,
    OURS,
    Way("code in the vector only, ef 100, strict_order", 16, _hnsw(100, _STRICT)),
    Way("code in the vector only, ef 40, off", 16, _hnsw(40, _OFF)),
    Way("plain HNSW, ef 200, strict_order", 0, _hnsw(200, _STRICT)),
    Way("plain HNSW, ef 40, strict_order", 0, _hnsw(40, _STRICT)),
    Way("plain HNSW, ef 40, off (the usual cache)", 0, _hnsw(40, _OFF)),
)
WIDTHS = tuple(
    Way(f"code of {code}, ef 100, strict_order", code, _hnsw(100, _STRICT)) for code in (16, 8, 4)
)


class Searcher:
    """Asks one way, and takes the time."""

    def __init__(self, way: Way, database: Database, connection: Any) -> None:
        bound = way.scanned
        self._way = way
        self._store = PostgresStore(
            database, scanned=None if bound is None else lambda _dimensions: bound
        )
        self._connection = connection

    async def nearest(self, place: Place, vector: Vector) -> tuple[UUID | None, float]:
        """The nearest entry's id, and ms."""
        began = time.perf_counter()
        code = self._way.code
        if code is None:
            found = await self._store.find_nearest(NearestQuery(place, b"", SPACE, vector))
            id = found.candidates[0].entry_id if found.candidates else None
        else:
            searched = vector
            if code:
                cell = cell_of(TENANT, POLICY, place.scope, SPACE, DIMENSIONS, b"")
                drawn = code_of(cell)[:code]
                searched = np.concatenate([vector, drawn / np.linalg.norm(drawn)])
            values = HalfVector(searched), TENANT, POLICY, place.scope, SPACE
            row = await self._connection.fetchrow(self._way.query, *values)
            id = row["id"] if row else None
        return id, (time.perf_counter() - began) * 1000
