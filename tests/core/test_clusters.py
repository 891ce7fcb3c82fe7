"""Vectors are told apart by the directions they gather around."""

from __future__ import annotations

import numpy as np

from cachesvc.core.clusters import centroids_of, mean_of, nearest_of


def units(seed: int, number: int, dimensions: int = 24) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((number, dimensions)).astype(np.float32)
    lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths)


def around(middles: np.ndarray, number: int) -> np.ndarray:
    """So many unit vectors close to each of these, one after the other."""
    near = np.repeat(middles, number, axis=0) + 0.2 * units(9, number * len(middles))
    return np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), dtype=np.float32)


def test_vectors_that_gather_around_a_few_directions_are_told_apart() -> None:
    middles = units(1, 2)
    vectors = around(middles, 100)
    found = centroids_of(vectors, 2, seed=3)
    assert np.max(found @ middles.T, axis=1).min() > 0.99
    groups = nearest_of(vectors, found)
    assert len(set(groups[:100])) == len(set(groups[100:])) == 1
    assert groups[0] != groups[-1]


def test_centroids_are_unit_vectors_and_the_same_for_the_same_seed() -> None:
    vectors = units(2, 300)
    found = centroids_of(vectors, 8, seed=5)
    assert found.shape == (8, 24)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.array_equal(found, centroids_of(vectors, 8, seed=5))
    # Each vector's own is nearer to it than one drawn at random.
    own = np.max(vectors @ found.T, axis=1)
    assert own.mean() > np.max(vectors @ units(4, 8).T, axis=1).mean() + 0.05


def test_vectors_that_are_all_the_same_have_one_centroid() -> None:
    found = centroids_of(np.repeat(units(3, 1), 50, axis=0), 4, seed=1)
    assert found.shape == (1, 24)


def test_there_are_no_more_centroids_than_different_vectors() -> None:
    vectors = np.repeat(units(3, 3), 50, axis=0)
    assert len(centroids_of(vectors, 8, seed=1)) == 3


def test_the_mean_of_opposites_is_one_of_them() -> None:
    one = units(3, 1)[0]
    assert np.array_equal(mean_of(np.stack([one, -one])), one)
    assert np.allclose(mean_of(np.stack([one, one])), one, atol=1e-6)
