"""A cell has one name and one code on every machine, and no two cells share them."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.core.cells import CODE_DIMENSIONS, cell_of, code_of

PARTS = ("acme", "support", "shared", "minilm", 384, b"p")
texts = st.text(max_size=8)
cells = st.tuples(
    texts, texts, texts, texts, st.integers(min_value=1, max_value=3984), st.binary(max_size=8)
)


@given(cells, cells)
def test_two_cells_share_a_name_only_when_they_are_one(
    one: tuple[str, str, str, str, int, bytes], other: tuple[str, str, str, str, int, bytes]
) -> None:
    assert (cell_of(*one) == cell_of(*other)) == (one == other)


def test_what_is_written_into_another_part_is_another_cell() -> None:
    # As text put together they would be the same.
    assert cell_of("a", "bc", "", "", 1, b"") != cell_of("ab", "c", "", "", 1, b"")
    assert cell_of("a", "b", "", "x1", 2, b"") != cell_of("a", "b", "", "x", 12, b"")


def test_a_name_and_its_code_are_the_same_in_every_process() -> None:
    # They are stored: another value would orphan what is stored.
    assert cell_of(*PARTS).hex() == "90b6a4de2a943e20b9967a1c76dccf5e"
    program = (
        "from cachesvc.core.cells import cell_of, code_of\n"
        f"print(code_of(cell_of(*{PARTS!r})).tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout
    assert printed.strip() == str(code_of(cell_of(*PARTS)).tolist())


def test_codes_are_unit_vectors_spread_evenly_over_the_sphere() -> None:
    codes = np.array([code_of(number.to_bytes(16, "big")) for number in range(4000)])
    assert codes.shape == (4000, CODE_DIMENSIONS)
    assert np.linalg.norm(codes, axis=1) == pytest.approx(1.0)
    # For 16 even dimensions: no direction is favoured, and each holds a sixteenth of the variance.
    assert np.abs(codes.mean(axis=0)).max() < 0.02
    assert (codes**2).mean(axis=0) == pytest.approx(1 / CODE_DIMENSIONS, rel=0.1)
    pairs = [abs(float(one @ other)) for one, other in combinations(codes[:300], 2)]
    assert max(pairs) < 0.95


def test_nobody_changes_a_code_for_others() -> None:
    with pytest.raises(ValueError, match="read-only"):
        code_of(b"\0" * 16)[0] = 1.0
