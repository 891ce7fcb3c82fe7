"""Entries by the hundred thousand, written as puts would leave them, and prompts like theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from pgvector import HalfVector

from cachesvc.core.cells import cell_of, code_of
from cachesvc.core.vectors import read_vector
from cachesvc.store.base import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from cachesvc.core.vectors import Vector

    Vectors = NDArray[np.float32]  # half the memory, and more than the stored halves tell

TENANT, POLICY, SPACE = "bench", "support", "bench"
DIMENSIONS = 384
TOPICS = 60
_BODY = b"x" * 800
_COPIED = 20_000
COLUMNS = (
    *("tenant", "id", "policy_id", "scope", "space", "dimensions", "partition", "prompt_hash"),
    *("embedding", "leaf", "body", "prompt_text", "prompt_tokens", "completion_tokens"),
    *("model", "tags", "generation", "provenance", "created_at", "semantic_expires_at", "drawn"),
)
# For the ways that index every entry: its cell's code.
DRAWN = "ALTER TABLE entries ADD COLUMN IF NOT EXISTS drawn halfvec"


@dataclass
class Workload:
    """How many entries each scope holds, and whether all of them hold the same prompts.

    Beside each one that lives lie `dead` times as many that are expired and nearer to the queries.
    """

    name: str
    sizes: list[int]
    same: bool
    dead: float = 0.0
    dice: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self.topics = _units(self.dice, TOPICS)
        self.popular = self.prompts(max(self.sizes)) if self.same else None
        self.stored: list[Vectors] = [
            self.prompts(size) if self.popular is None else self._popular(scope, size)
            for scope, size in enumerate(self.sizes)
        ]

    @property
    def rows(self) -> int:
        return sum(size + self._dead(size) for size in self.sizes)

    def _dead(self, size: int) -> int:
        return int(self.dead * size)

    def _popular(self, scope: int, size: int) -> Vectors:
        """So many of the popular prompts; scopes that hold few hold different ones."""
        assert self.popular is not None
        start = scope % (len(self.popular) - size + 1)
        return self.popular[start : start + size]

    def prompts(self, number: int) -> Vectors:
        """Unit vectors around a few topics, as prompts are: (number, d). Cosine .55 in a topic."""
        own = _units(self.dice, number) * 0.9
        return _unit(self.topics[self.dice.integers(0, TOPICS, number)] + own)

    def place(self, scope: int) -> Place:
        return Place(TENANT, POLICY, f"scope {scope}")

    def records(self) -> Iterator[list[tuple[Any, ...]]]:
        """Rows for COLUMNS, in batches, all scopes mixed as traffic mixes them."""
        numbers = [size + self._dead(size) for size in self.sizes]
        scopes = np.repeat(np.arange(len(numbers)), numbers)
        indexes = np.concatenate([np.arange(number) for number in numbers])
        order = self.dice.permutation(scopes.size)
        for start in range(0, order.size, _COPIED):
            yield [
                self.record(int(scopes[n]), int(indexes[n])) for n in order[start : start + _COPIED]
            ]

    def record(self, scope: int, index: int) -> tuple[Any, ...]:
        """A row; one with an index beyond the scope's size is dead."""
        size, now = self.sizes[scope], datetime.now(timezone.utc)
        lives = index < size
        vector = self.stored[scope][index] if lives else self.like(scope, index % size, 0.99)
        name = self.place(scope).scope
        cell = cell_of(TENANT, POLICY, name, SPACE, DIMENSIONS, b"")
        id = id_of(scope, index)
        return (
            *(TENANT, id, POLICY, name, SPACE, DIMENSIONS, b"", id.bytes, HalfVector(vector)),
            *(cell, _BODY, b"a prompt", 0, 0, "", [], 1, ""),
            *(now - timedelta(minutes=1), now + timedelta(days=1 if lives else -1)),
            HalfVector(code_of(cell)),
        )

    def cells(self) -> Iterator[bytes]:
        """The name of each scope's cell."""
        for scope in range(len(self.sizes)):
            name = self.place(scope).scope
            yield cell_of(TENANT, POLICY, name, SPACE, DIMENSIONS, b"")

    def like(self, scope: int, index: int, cosine: float) -> Vector:
        """Another wording of a stored prompt."""
        return self.wording(self.stored[scope][index], cosine)

    def wording(self, stored: Vectors, cosine: float) -> Vector:
        """A unit vector at this cosine of `stored`, which is one, too."""
        other = self.dice.standard_normal(DIMENSIONS)
        other -= float(other @ stored) * stored
        other /= np.linalg.norm(other)
        return read_vector((cosine * stored + np.sqrt(1 - cosine**2) * other).tolist())

    def unlike(self) -> Vector:
        """A prompt that nothing stored is near to."""
        return read_vector(_units(self.dice, 1)[0].tolist())


def id_of(scope: int, index: int) -> UUID:
    return UUID(int=(scope << 64) + index)


def _units(dice: np.random.Generator, number: int) -> Vectors:
    return _unit(dice.standard_normal((number, DIMENSIONS), dtype=np.float32))


def _unit(vectors: Vectors) -> Vectors:
    lengths: Vectors = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: Vectors = vectors / lengths
    return units
