"""Spherical k-means (Dhillon and Modha, 2001): a few directions that many vectors gather around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_ROUNDS = 8


def centroids_of(vectors: Vectors, number: int, seed: int) -> Vectors:
    """Up to `number` unit vectors, shape (k, d), of unit vectors, shape (n, d); all different.

    The same for the same seed. One vector gives one centroid, and so do many that are equal.
    """
    dice = np.random.default_rng(seed)
    different = np.unique(vectors, axis=0)
    found = different[dice.permutation(len(different))[:number]]
    for _ in range(_ROUNDS):
        nearest = nearest_of(vectors, found)
        groups = [vectors[nearest == one] for one in range(len(found))]
        found = np.stack([mean_of(group) for group in groups if len(group)])
    return found


def mean_of(vectors: Vectors) -> Vectors:
    """The one direction that unit vectors, shape (n, d), lie around; shape (d,)."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(mean)
    middle: Vectors = (mean / length).astype(np.float32) if length > 0 else vectors[0]
    return middle


def nearest_of(vectors: Vectors, centroids: Vectors) -> NDArray[Any]:
    """For each vector, shape (n, d), the number of its nearest centroid, shape (n,)."""
    nearest: NDArray[Any] = np.argmax(vectors @ centroids.T, axis=1)
    return nearest
