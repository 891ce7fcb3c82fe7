"""Vectors: read, normalised in float64, compared once."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cachesvc.core.vectors import read_vector, similarity, similarity_of_halves
from cachesvc.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("embedding", "told"),
    [
        ([], "0 dimensions"),
        ([0.1] * 3985, "3985 dimensions"),
        ([0.0, 0.0], "norm"),
        ([1e-13, 0.0], "norm"),
        ([float("nan"), 1.0], "finite"),
        (b"\x00\x00\x80\x7f", "finite"),
        (b"\x00\x00\xc0\x7f\x00\x00\x80\x3f", "finite"),
        (b"\x00\x00\x80", "float32"),
        (b"", "0 dimensions"),
    ],
)
def test_what_has_no_direction_is_refused(embedding: list[float] | bytes, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        read_vector(embedding)


@pytest.mark.parametrize("scale", [1e-11, 1.0, 1e200, 1e308])
def test_the_length_of_a_vector_does_not_matter(scale: float) -> None:
    vector = read_vector([0.6 * scale, 0.8 * scale])
    np.testing.assert_allclose(vector, [0.6, 0.8], rtol=1e-12)


def test_numbers_and_bytes_are_the_same_vector() -> None:
    numbers = [0.25, -0.5, 1.0]
    np.testing.assert_array_equal(read_vector(numbers), read_vector(struct.pack("<3f", *numbers)))


def test_similarity_is_clamped_and_rounded_once() -> None:
    one = read_vector([1.0, 0.0])
    assert similarity(one, np.array([2.0, 0.0])) == 1.0
    assert similarity(one, np.array([-2.0, 0.0])) == -1.0
    assert similarity(one, read_vector([1.0, 1.0])) == 0.707107


def test_the_stored_halves_are_what_is_compared() -> None:
    rng = np.random.default_rng(5)
    query, stored = (read_vector(list(rng.normal(size=384))) for _ in range(2))
    halves = stored.astype(np.float16)
    by_hand = float(query @ halves.astype(np.float64) / np.linalg.norm(halves.astype(np.float64)))
    assert similarity_of_halves(query, halves.astype(">f2").tobytes()) == round(by_hand, 6)


class Unread(list[float]):
    """Numbers that nobody may look at."""

    def __iter__(self) -> Iterator[float]:
        raise AssertionError("it was read")

    __getitem__ = None  # type: ignore[assignment]


def test_a_vector_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(Invalid, match="3985 dimensions; must be 1 to 3984"):
        read_vector(Unread([1.0] * 3985))
    with pytest.raises(Invalid, match="3985 dimensions"):
        read_vector(bytes(4 * 3985))
