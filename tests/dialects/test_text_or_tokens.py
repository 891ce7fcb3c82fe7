"""Completions and embeddings: requests that are text, or tokens, or several of either."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cachesvc.core.admission import Reading
from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects.openai_completions import OpenAICompletions
from cachesvc.dialects.openai_embeddings import OpenAIEmbeddings
from cachesvc.errors import Unreadable
from tests.dialects.shapes import JSON, STREAM

SEVERAL: list[Any] = [["a", "b"], [1, 2], [7], [[1, 2], [3]], [[1]]]
NEITHER: list[Any] = [
    None,
    7,
    True,
    {},
    [],
    [[]],
    ["a", 1],
    [1, "a"],
    [True],
    [1.5],
    [[1], "a"],
    [["a"]],
    [{}],
]


def complete(**fields: Any) -> Ask:
    body = {"model": "m", "prompt": "hi", **fields}
    return OpenAICompletions().read(json.dumps(body).encode())


def embed(**fields: Any) -> Ask:
    body = {"model": "m", "input": "hi", **fields}
    return OpenAIEmbeddings().read(json.dumps(body).encode())


def test_one_text_is_a_users_turn() -> None:
    assert complete().turns == (Turn("user", (("prompt",),)),)
    assert complete(prompt=["hi"]).turns == (Turn("user", (("prompt", 0),)),)
    assert complete().comparable
    assert complete(prompt=["hi"]).comparable
    assert complete(suffix="!", max_tokens=3, stream=True, temperature=0).comparable


@pytest.mark.parametrize("prompt", SEVERAL)
def test_several_texts_and_tokens_are_for_the_exact_tier_alone(prompt: Any) -> None:
    assert not complete(prompt=prompt).comparable
    assert complete(prompt=prompt).turns == ()


def test_an_answer_that_echoes_its_prompt_fits_no_other_prompt() -> None:
    assert not complete(echo=True).comparable
    assert complete(echo=False).comparable


@pytest.mark.parametrize("prompt", NEITHER)
def test_another_shape_is_not_judged(prompt: Any) -> None:
    with pytest.raises(Unreadable):
        complete(prompt=prompt)
    with pytest.raises(Unreadable):
        embed(input=prompt)


@pytest.mark.parametrize("given", ["hi", "", *SEVERAL])
def test_embeddings_are_for_the_exact_tier_alone(given: Any) -> None:
    ask = embed(input=given)
    assert (ask.comparable, ask.turns, ask.stateful) == (False, (), False)


@pytest.mark.parametrize(
    "body",
    [
        {"data": []},
        {"data": None},
        {"data": ["x"]},
        {"data": [{}]},
        {"data": [{"embedding": None}]},
        {"data": [{"embedding": []}]},
        {"data": [{"embedding": 7}]},
        {"data": [{"embedding": [1.0]}, {"embedding": ""}]},
    ],
)
def test_an_answer_without_a_vector_for_each_is_not_whole(body: dict[str, Any]) -> None:
    assert OpenAIEmbeddings().read_answer(JSON, json.dumps(body).encode()) is None


def test_vectors_never_come_in_a_stream() -> None:
    body = b'data: {"data":[{"embedding":[1.0]}]}\n\n'
    assert OpenAIEmbeddings().read_answer(STREAM, body + b"data: [DONE]\n\n") is None
    whole = b'{"data":[{"embedding":[1.0]}],"usage":7}'
    assert OpenAIEmbeddings().read_answer(JSON, whole) == Reading()


def test_errors_have_the_apis_shape() -> None:
    for dialect in (OpenAICompletions(), OpenAIEmbeddings()):
        error = json.loads(dialect.error(502, "upstream_unreachable", "no answer"))["error"]
        assert set(error) == {"message", "type", "param", "code"}
