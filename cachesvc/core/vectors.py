"""Vectors: read, normalise in float64, compare. Shapes are (d,), 1 <= d <= 3,984."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cachesvc.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

Vector = NDArray[np.float64]

MAX_DIMENSIONS = 3984  # pgvector indexes halfvec up to 4,000; 16 are kept for a partition code
MIN_NORM = 1e-12
# Between these squares of a norm nothing is lost on the way through float64.
_PLAIN = (1e-20, 1e20)


def check_dimensions(number: int, field: str = "embedding") -> None:
    """Raises Invalid when there are none, or too many. It costs nothing, whatever was sent."""
    if not 1 <= number <= MAX_DIMENSIONS:
        raise Invalid(f"{field}: {number} dimensions; must be 1 to {MAX_DIMENSIONS}")


def read_vector(embedding: Sequence[float] | bytes, *, field: str = "embedding") -> Vector:
    """The unit vector, float64, shape (d,), of numbers or of little-endian float32 bytes.

    Raises Invalid when there are no or too many dimensions, when a value is not finite, or when
    the norm is below 1e-12 (a direction cannot be told).
    """
    if isinstance(embedding, bytes):
        if len(embedding) % 4:
            raise Invalid(f"{field}: {len(embedding)} bytes are not a whole number of float32")
        check_dimensions(len(embedding) // 4, field)
        vector = np.frombuffer(embedding, dtype="<f4").astype(np.float64)
        # The squares of float32 do not overflow float64, and most vectors are near a length of 1.
        square = float(np.dot(vector, vector))
        if _PLAIN[0] < square < _PLAIN[1]:
            return vector / math.sqrt(square)
    else:
        check_dimensions(len(embedding), field)
        vector = np.array(embedding, dtype=np.float64)
    largest = float(np.max(np.abs(vector)))
    if not np.isfinite(largest):
        raise Invalid(f"{field}: every value must be finite")
    if largest < MIN_NORM and float(np.linalg.norm(vector)) < MIN_NORM:
        raise Invalid(f"{field}: the norm is below {MIN_NORM:g}; a zero vector has no direction")
    # Scaled first, so that squares of very large values do not overflow float64.
    vector /= largest
    return vector / np.linalg.norm(vector)


def similarity(query: Vector, stored: Vector) -> float:
    """Cosine of a unit query (d,) and a stored vector (d,), in [-1, 1], rounded once to 6 decimals.

    The rounded value is what is compared, reported and logged.
    """
    # numpy's norm() is the same root at five times the price.
    cosine = float(np.dot(query, stored)) / math.sqrt(np.dot(stored, stored))
    return round(min(1.0, max(-1.0, cosine)), 6)


def similarity_of_halves(query: Vector, stored: bytes) -> float:
    """`similarity` of a unit query and stored big-endian float16 bytes (pgvector's wire form)."""
    return similarity(query, np.frombuffer(stored, dtype=">f2").astype(np.float64))
