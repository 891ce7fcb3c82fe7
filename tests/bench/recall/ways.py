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

_BUILD = "m = 16, ef_construction = 200"
_ALL = (
    "FROM entries WHERE tenant = $2 AND policy_id = $3 AND scope = $4 AND space = $5"
    f" AND dimensions = {DIMENSIONS} AND exact_key IS NULL AND semantic_expires_at > now()"
)
_ROWS = f"SELECT id {_ALL} ORDER BY"


def _searched(code: int) -> str:
    """The indexed expression with so many dimensions of the code."""
    short = f"l2_normalize(subvector(drawn, 1, {code}))::halfvec"
    added = {0: "", CODE_DIMENSIONS: " || drawn"}.get(code, f" || {short}")
    return f"(embedding{added})::halfvec({DIMENSIONS + code})"


@dataclass(frozen=True)
class Way:
    """One way to search: settings of the connection, and what is asked.

    `code` is how many dimensions of the code are appended, in an index of all rows; None stands
    for the store's own statement and index, or for all rows of the scope, compared one by one.
    """

    name: str
    code: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    exact: bool = False

    @property
    def query(self) -> str:
        if self.exact:
            return (
                "SELECT id FROM ("
                f"SELECT id, embedding <=> $1 AS distance {_ALL} OFFSET 0"
                ") compared ORDER BY distance LIMIT 4"
            )
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
OURS = Way("cachesvc: small cells scanned, large ones by their leaves")
EXACT = Way("exact scan", exact=True)
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
        self._way = way
        self._store = PostgresStore(database)
        self._connection = connection

    async def nearest(self, place: Place, vector: Vector) -> tuple[UUID | None, float]:
        """The nearest entry's id, and ms."""
        began = time.perf_counter()
        code = self._way.code
        if code is None and not self._way.exact:
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
