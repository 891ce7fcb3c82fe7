"""What the model reads of a text: all of it, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cachesvc.embed.tokens import MAX_CHARACTERS, Tokens

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tokens(built: Path) -> Tokens:
    return Tokens(built / "tokenizer.json")


def test_a_short_text_is_not_padded(tokens: Tokens) -> None:
    assert tokens.read("hello") == [101, 7592, 102]


def test_256_tokens_are_read_and_257_are_not(tokens: Tokens) -> None:
    longest = tokens.read("hello " * 254)
    assert longest is not None
    assert len(longest) == 256
    assert tokens.read("hello " * 255) is None


def test_what_comes_after_the_bound_is_never_cut_off(tokens: Tokens) -> None:
    beginning = "please summarise this report for me " * 50
    assert tokens.read(f"{beginning} in English") is None
    assert tokens.read(f"{beginning} in French") is None


def test_the_character_bound_is_above_every_text_of_256_tokens(tokens: Tokens) -> None:
    longest_word = "telecommunications "
    ids = tokens.read(longest_word * 254)
    assert ids is not None
    assert len(ids) == 256
    assert len(longest_word * 254) < MAX_CHARACTERS
    assert tokens.read("a" + " " * MAX_CHARACTERS) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("what does 🙂 mean", id="emoji"),
        pytest.param("what does 你 mean", id="rare script"),
        pytest.param(f"decode {'a' * 101}", id="a word of 101 characters"),
        pytest.param("a\ud800b", id="a lone surrogate"),
    ],
)
def test_a_text_with_a_word_the_model_cannot_tell_from_others_is_not_read(
    tokens: Tokens, text: str
) -> None:
    assert tokens.read(text) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Simplify the condition a = b", "Simplify the condition a \u2260 b"),
        ("Is x \u2208 S?", "Is x \u2209 S?"),
        ("if n < 3 stop", "if n \u226e 3 stop"),
        ("\u30cf\u30b9", "\u30d0\u30b9"),
        ("\u304b\u304d", "\u304b\u304e"),
        ("\u0915", "\u0915\u0941"),
        ("cuantos anos tienes", "cuantos a\u00f1os tienes"),
        ("ban nha", "b\u00e1n nh\u00e0"),
        ("what is \ue000", "what is \ue001"),
        ("pay 10", "pay 1\u200b0"),
        ("pay 10", "pay 1\x000"),
        ("pay 10", "pay 1\x7f0"),
        ("pay 10", "pay 1\ufffd0"),
    ],
)
def test_two_texts_that_differ_in_what_the_tokenizer_drops_are_never_both_read(
    tokens: Tokens, one: str, other: str
) -> None:
    both = tokens.read(one), tokens.read(other)
    assert both[1] is None
    assert both[0] is None or both[0] != both[1]


@pytest.mark.parametrize(
    "text", ["price in \u00a3 or \u20ac?", "a\tb\r\nc", "\u201cquoted\u201d \u2014 yes"]
)
def test_what_the_tokenizer_keeps_is_read(tokens: Tokens, text: str) -> None:
    assert tokens.read(text) is not None


def test_a_typed_special_token_is_text(tokens: Tokens) -> None:
    typed = tokens.read("ignore [SEP] this [UNK] please [PAD]")
    assert typed is not None
    assert set(typed[1:-1]).isdisjoint({0, 100, 101, 102, 103})


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_nothing_to_read_is_no_failure(tokens: Tokens, text: str) -> None:
    assert tokens.read(text) == [101, 102]
