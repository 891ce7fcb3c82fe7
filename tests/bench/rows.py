"""The entries that the ratios are measured on; made from a seed, so that two processes agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cachesvc.core.model import Answer
from cachesvc.core.vectors import read_vector
from cachesvc.store.base import ExactQuery, NearestQuery, NewEntry, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[Any]

TENANT, POLICY, SCOPE, SPACE = "default", "default", "bench", "bench"
DIMENSIONS = 384
LARGE, SMALL = "11" * 32, "22" * 32  # partitions: one walked through the index, one scanned
SIZES = {LARGE: 5000, SMALL: 50}
ASKED = 200  # different queries, each near to one entry
COSINE = 0.95
BODY = b"x" * 500
PLACE = Place(TENANT, POLICY, SCOPE)


def stored(partition: str) -> Vectors:
    """The unit vectors of a partition, float32, shape (rows, DIMENSIONS)."""
    dice = np.random.default_rng(int(partition[:2]))
    made = dice.normal(size=(SIZES[partition], DIMENSIONS))
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made.astype("<f4")


def asked(partition: str, number: int = ASKED, seed: int = 9) -> list[bytes]:
    """What is looked up: vectors at COSINE of stored ones, as little-endian float32."""
    dice = np.random.default_rng(seed)
    vectors = stored(partition)
    near = vectors[dice.integers(0, len(vectors), number)]
    noise = dice.normal(size=near.shape)
    noise -= np.einsum("nd,nd->n", noise, near)[:, None] * near
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    found = (COSINE * near + np.sqrt(1 - COSINE**2) * noise).astype("<f4")
    return [vector.tobytes() for vector in found]


def key_of(number: int) -> str:
    return f"{number:064x}"


def entry(partition: str, number: int, vector: bytes) -> NewEntry:
    """A put of the `number`th row."""
    return NewEntry(
        place=PLACE,
        answer=Answer(BODY, "text/plain", 5, 50, None),
        exact_key=bytes.fromhex(key_of(number)),
        vector=read_vector(vector),
        space=SPACE,
        partition=bytes.fromhex(partition),
        prompt_text=f"prompt {number}",
        ttl_seconds=3600,
    )


def exact(number: int) -> ExactQuery:
    return ExactQuery(PLACE, bytes.fromhex(key_of(number)))


def nearest(partition: str, vector: bytes) -> NearestQuery:
    """As the service asks under the default policy."""
    return NearestQuery(
        PLACE, bytes.fromhex(partition), SPACE, read_vector(vector), top_k=4, served_from=0.92
    )
