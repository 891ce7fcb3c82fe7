"""Content codings are undone within bounds, whatever the bytes are."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.proxy.decoding import CutOff, Oversize, Undecodable, decoded

CODERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
MEBI = 2**20


@pytest.mark.parametrize("coding", list(CODERS))
@given(body=st.binary(max_size=300))
def test_what_was_coded_comes_back(coding: str, body: bytes) -> None:
    coded = CODERS[coding](body)
    assert decoded([coding], coded, len(body)) == body
    if body:
        with pytest.raises(Oversize):
            decoded([coding], coded, len(body) - 1)


@pytest.mark.parametrize("coding", list(CODERS))
def test_every_cut_is_seen(coding: str) -> None:
    coded = CODERS[coding](b"some text, some text, some more text" * 3)
    for at in range(len(coded)):
        with pytest.raises((CutOff, Undecodable)):
            decoded([coding], coded[:at], MEBI)


@pytest.mark.parametrize("coding", [*CODERS, "x-gzip", "identity", "none of them", ""])
@given(body=st.binary(max_size=200))
def test_any_bytes_end_in_bytes_or_in_a_known_error(coding: str, body: bytes) -> None:
    try:
        assert isinstance(decoded([coding], body, 100), bytes)
    except (CutOff, Undecodable, Oversize):
        return


@pytest.mark.parametrize("coding", list(CODERS))
def test_a_bomb_costs_the_bound_and_little_more(coding: str) -> None:
    coded = CODERS[coding](bytes(200 * MEBI))
    tracemalloc.start()
    try:
        with pytest.raises(Oversize):
            decoded([coding], coded, MEBI)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * MEBI


def test_a_train_of_empty_members_is_given_up() -> None:
    with pytest.raises(Undecodable):
        decoded(["gzip"], gzip.compress(b"") * 10_000, MEBI)
    with pytest.raises(Undecodable):
        decoded(["zstd"], zstandard.compress(b"") * 10_000, MEBI)


def test_identity_is_nothing_and_two_codings_are_too_many() -> None:
    assert decoded(["identity", ""], b"x", 1) == b"x"
    for codings in (["gzip", "br"], ["gzip, gzip"], ["gzip", "compress"]):
        with pytest.raises(Undecodable):
            decoded(codings, gzip.compress(b"x"), MEBI)
