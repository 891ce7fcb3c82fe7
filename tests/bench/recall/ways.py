"""The ways to search that are compared: the store's own, and what others do."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector import HalfVector

from cachesvc.core.cells import cell_of, code_of
from cachesvc.store.base import NearestQuery
from cachesvc.store.postgres import PostgresStore
from tests.bench.recall.data import DIMENSIONS, POLICY, SPACE, TENANT

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.core.vectors import Vector
    from cachesvc.store.base import Place
    from cachesvc.store.pool import Database

_EVERYTHING = 1_000_000_000
_CODED = DIMENSIONS + 16
_ROWS = (
    "SELECT id FROM entries WHERE tenant = $2 AND policy_id = $3 AND scope = $4 AND space = $5"
    f" AND dimensions = {DIMENSIONS} AND semantic_expires_at > now() ORDER BY"
)
PLAIN = f"{_ROWS} embedding::halfvec({DIMENSIONS}) <=> $1::halfvec({DIMENSIONS}) LIMIT 4"
CODED = f"{_ROWS} (embedding || code)::halfvec({_CODED}) <=> $1::halfvec({_CODED}) LIMIT 4"
# Beside the store's own index, which takes other expressions; made and dropped by the run.
PLAIN_INDEX = (
    f"CREATE INDEX plain ON entries USING hnsw ((embedding::halfvec({DIMENSIONS})) "
    f"halfvec_cosine_ops) WHERE dimensions = {DIMENSIONS}"
)


@dataclass(frozen=True)
class Way:
    """One way to search: settings of the connection, and what is asked."""

    name: str
    query: str | None = None  # None: the store's own statement
    settings: dict[str, str] = field(default_factory=dict)
    scanned: int | None = None  # the store's own: another bound for the exact scan

    @property
    def plain(self) -> bool:
        return self.query is PLAIN


def _hnsw(ef_search: int, scan: str) -> dict[str, str]:
    return {"hnsw.ef_search": str(ef_search), "hnsw.iterative_scan": scan}


OURS = Way("cachesvc: small cells scanned, large ones walked with their code")
EXACT = Way("exact scan", scanned=_EVERYTHING)
WAYS = (
    EXACT,
    OURS,
    Way("code in the vector only, ef 100, strict_order", CODED, _hnsw(100, "strict_order")),
    Way("code in the vector only, ef 40, off", CODED, _hnsw(40, "off")),
    Way("plain HNSW, ef 200, strict_order", PLAIN, _hnsw(200, "strict_order")),
    Way("plain HNSW, ef 40, strict_order", PLAIN, _hnsw(40, "strict_order")),
    Way("plain HNSW, ef 40, off (the usual cache)", PLAIN, _hnsw(40, "off")),
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
        if self._way.query is None:
            found = await self._store.find_nearest(NearestQuery(place, b"", SPACE, vector))
            id = found.candidates[0].entry_id if found.candidates else None
        else:
            searched = vector
            if not self._way.plain:
                cell = cell_of(TENANT, POLICY, place.scope, SPACE, DIMENSIONS, b"")
                searched = np.concatenate([vector, code_of(cell)])
            values = HalfVector(searched), TENANT, POLICY, place.scope, SPACE
            row = await self._connection.fetchrow(self._way.query, *values)
            id = row["id"] if row else None
        return id, (time.perf_counter() - began) * 1000
