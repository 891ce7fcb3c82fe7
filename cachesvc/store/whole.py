"""All that lives in one cell, in memory: what is nearest is found there without a query."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cachesvc.core.decision import nearest_first
from cachesvc.core.model import Candidate
from cachesvc.core.vectors import similarity
from cachesvc.store.base import UNREAD

if TYPE_CHECKING:
    from cachesvc.store.base import NearestQuery

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # Postgres counts its microseconds from here
# Two float32 scores nearer to each other than this may be in the wrong order.
_ROUNDING = 1e-5
_FEW_TIED, _TIED_AT_MOST = 32, 128


class WholeCell(Struct, frozen=True):
    """The n live entries of a cell as one reading found them. Shapes: (n,), of vectors (n, d).

    `ids` has 16 bytes of each; `created_at` and `expires_at` are in microseconds since 2000.
    `vectors` are the stored halves, float32, and `scales` what makes unit vectors of them.
    """

    revision: int
    generation: int
    now: datetime
    ids: bytes
    created_at: NDArray[np.int64]
    expires_at: NDArray[np.int64]
    vectors: NDArray[np.float32]
    scales: NDArray[np.float32]

    @property
    def weight(self) -> int:
        """In bytes."""
        rows: int = self.scales.size
        return rows * row_weight(self.vectors.shape[1])

    def nearest(self, query: NearestQuery) -> list[Candidate]:
        """As `find_nearest` has them, all UNREAD, as far as they are near enough to be served.

        Nearest first, of equal ones the newest first. None where more are equally near than are
        told apart here in a moment.
        """
        scores = self.vectors @ query.vector.astype(np.float32)
        scores *= self.scales
        places = np.flatnonzero(scores >= query.served_from - _ROUNDING)
        if places.size > query.top_k:
            places = self._first(places, scores[places], query)
        return nearest_first((self._candidate(at, query) for at in places.tolist()), query.top_k)

    def _first(
        self, places: NDArray[np.intp], scores: NDArray[np.float32], query: NearestQuery
    ) -> NDArray[np.intp]:
        """Those of the highest scores, and those that may be as high."""
        rank = scores.size - query.top_k
        places = places[scores >= np.partition(scores, rank)[rank] - _ROUNDING]
        if places.size > _TIED_AT_MOST:
            return places[:0]
        if places.size > _FEW_TIED:
            # The same vector scores a little more in one row of a matrix than in another.
            vectors = self.vectors[places].astype(np.float64)
            exact = np.einsum("nd,d->n", vectors, query.vector) * self.scales[places]
            first = np.lexsort((-self.created_at[places], -np.round(exact, 6)))
            places = places[first[:_FEW_TIED]]
        return places

    def _candidate(self, place: int, query: NearestQuery) -> Candidate:
        return Candidate(
            UUID(bytes=self.ids[16 * place : 16 * place + 16]),
            UNREAD,
            _EPOCH + timedelta(microseconds=self.created_at.item(place)),
            _EPOCH + timedelta(microseconds=self.expires_at.item(place)),
            similarity(query.vector, self.vectors[place].astype(np.float64)),
        )


def row_weight(dimensions: int) -> int:
    """In bytes: an id, two times, a scale, and the vector."""
    return 16 + 2 * 8 + 4 + 4 * dimensions


def read_whole(row: Any, dimensions: int) -> WholeCell:
    """What the statement `whole_cell` has found, in Postgres' binary formats, one after another."""
    sent = np.dtype(
        [
            *(("id", "V16"), ("created_at", ">i8"), ("expires_at", ">i8")),
            *(("dimensions", ">i2"), ("unused", ">i2"), ("vector", ">f2", (dimensions,))),
        ]
    )
    entries = np.frombuffer(row["entries"] or b"", dtype=sent)
    vectors = entries["vector"].astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return WholeCell(
        *(row["revision"], row["generation"], row["now"]),
        entries["id"].tobytes(),
        entries["created_at"].astype(np.int64),
        entries["expires_at"].astype(np.int64),
        vectors,
        np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0),
    )
