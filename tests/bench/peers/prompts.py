"""Prompts whose vectors are known: a paraphrase is exactly COSINE near its prompt, others are far.

Shared by the stub, which embeds, and by the driver, which asks. Only numpy is needed.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIMENSIONS = 384
COSINE = 0.95  # of a prompt and any of its paraphrases
THRESHOLD = 0.92  # the same in every system
_TOPIC = re.compile(r"problem (\S+) ")
_LETTERS = "bcdfghjklmnpqrstvwxz"


def prompt(topic: str) -> str:
    return f"How do I solve problem {topic} with my account?"


def paraphrase(topic: str, number: int) -> str:
    """One of any number of ways to ask the same; told apart by letters: digits mean things."""
    return f"{prompt(topic)} Please, {_word(number)}."


def _word(number: int) -> str:
    letters: list[str] = []
    while number or not letters:
        number, digit = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[digit])
    return "".join(letters)


def vector(text: str) -> NDArray[Any]:
    """The unit vector of a text, float32, shape (DIMENSIONS,): the same wherever it is made."""
    found = _TOPIC.search(text)
    topic = found.group(1) if found else text
    base = _direction(topic)
    if text == prompt(topic):
        return base
    noise = _random(text)
    noise -= float(noise @ base) * base
    noise /= np.linalg.norm(noise)
    made: NDArray[Any] = (COSINE * base + math.sqrt(1 - COSINE**2) * noise).astype("<f4")
    return made


@lru_cache(maxsize=20_000)
def _direction(topic: str) -> NDArray[Any]:
    made = _random(topic)
    unit: NDArray[Any] = (made / np.linalg.norm(made)).astype("<f4")
    return unit


def _random(text: str) -> NDArray[Any]:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    dice = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "big")))
    made: NDArray[Any] = dice.normal(size=DIMENSIONS)
    return made


def marker(text: str, scope: str) -> str:
    """What the upstream's answer to a text asked by a scope contains: it tells who was answered."""
    return f"answer to [[{text}]] for {scope};"
