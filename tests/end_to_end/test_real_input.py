"""300 real questions through the installed product with the current openai SDK."""

from __future__ import annotations

import asyncio
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest

from cachesvc.embed.local import LocalEmbedder
from cachesvc.embed.model_files import ensure_built
from tests.end_to_end.stack import Up, eventually
from tests.end_to_end.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

QUESTIONS = Path(__file__).parent.parent / "data" / "banking77.csv"
THRESHOLD = 0.92
UNSURE = 0.002  # a similarity this near to the threshold may fall on either side


@pytest.fixture(scope="module")
def questions() -> list[str]:
    with QUESTIONS.open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert len(texts) == 300
    return texts


@pytest.fixture(scope="module")
def vectors(questions: list[str], tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float64]:
    """The questions' unit vectors, (300, 384): the model's own, not the product's path."""
    folder = ensure_built(tmp_path_factory.mktemp("model"), print)

    async def embed() -> list[bytes | None]:
        embedder = LocalEmbedder(folder)
        try:
            return [await embedder.embed(text) for text in questions]
        finally:
            await embedder.close()

    made = [np.frombuffer(vector or b"", "<f4") for vector in asyncio.run(embed())]
    return np.stack(made).astype(np.float64)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def up(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    # What is decided is tested here, not how soon: this machine may stall for longer than a budget.
    patient = {"CACHESVC_PROXY_LOOKUP_BUDGET_MS": "5000"}
    folder = tmp_path_factory.mktemp("up")
    with Up(folder, "--upstream", upstream.url, environment=patient) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(up: Up) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.proxy}/v1", api_key="sk-test", max_retries=0) as client:
        yield client


def ask(sdk: openai.OpenAI, question: str, *, stream: bool) -> tuple[dict[str, str], bytes]:
    """The reply's headers and body bytes, through the SDK."""
    messages: Any = [{"role": "user", "content": question}]
    create: Any = sdk.chat.completions.with_streaming_response.create
    with create(model="gpt-4o-mini", messages=messages, stream=stream) as reply:
        body = b"".join(reply.iter_bytes())
        return {name.lower(): value for name, value in reply.headers.items()}, body


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_every_question_is_judged_as_its_vector_says_and_every_repeat_is_an_exact_hit(
    questions: list[str],
    vectors: NDArray[np.float64],
    upstream: ScriptedUpstream,
    up: Up,
    sdk: openai.OpenAI,
    stream: bool,
) -> None:
    before = up.entries()
    stored: list[int] = []  # the questions whose own answer the cache keeps, in order
    bodies: list[bytes] = []
    hits = unsure = 0
    for index, question in enumerate(questions):
        headers, body = ask(sdk, question, stream=stream)
        bodies.append(body)
        status, tier = headers["x-ai-cache-status"], headers.get("x-ai-cache-tier")
        seen = _stored_halves(vectors, stored) @ vectors[index] if stored else np.array([-1.0])
        best = float(seen.max())
        if abs(best - THRESHOLD) < UNSURE:
            unsure += 1
        else:
            expected = "HIT" if best >= THRESHOLD else "MISS"
            told = headers["cache-status"]
            assert status == expected, f"{question!r}: nearest is {best:.4f}, {told}"
        if status == "MISS":
            stored.append(index)
            assert body == upstream.answers[question, stream]
            eventually(lambda: up.entries() == before + len(stored), every=0.002)
        else:
            hits += 1
            assert tier == "semantic"
            assert abs(float(headers["x-ai-cache-similarity"]) - best) < 2e-4
            answered = questions[stored[int(seen.argmax())]]
            assert body == upstream.answers[answered, stream]
    assert hits >= 15, "the sample holds paraphrases"
    assert unsure < 15
    _repeat(questions, bodies, sdk, upstream, stream=stream)
    assert {upstream.seen[questions[i], stream] for i in stored} == {1}
    assert sum(n for (_, s), n in upstream.seen.items() if s is stream) == len(stored)


def _repeat(
    questions: list[str],
    bodies: list[bytes],
    sdk: openai.OpenAI,
    upstream: ScriptedUpstream,
    *,
    stream: bool,
) -> None:
    calls = upstream.calls
    for question, body in zip(questions, bodies, strict=True):
        headers, again = ask(sdk, question, stream=stream)
        assert headers["x-ai-cache-status"] == "HIT", f"{question!r}: {headers['cache-status']}"
        assert headers["x-ai-cache-tier"] == "exact", question
        assert again == body
        assert "set-cookie" not in headers
        assert "x-request-id" not in headers
    assert upstream.calls == calls


def _stored_halves(vectors: NDArray[np.float64], stored: list[int]) -> NDArray[np.float64]:
    """What the store keeps of them: half precision, and again unit length."""
    halves = vectors[stored].astype(np.float16).astype(np.float64)
    made: NDArray[np.float64] = halves / np.linalg.norm(halves, axis=1, keepdims=True)
    return made


def test_the_sdk_reads_a_hit_as_it_reads_the_upstream(
    sdk: openai.OpenAI, up: Up, upstream: ScriptedUpstream
) -> None:
    question, before = "What does the SDK make of a hit?", up.entries()
    messages: Any = [{"role": "user", "content": question}]
    create: Any = sdk.chat.completions.create

    def streamed() -> list[Any]:
        with create(model="gpt-4o-mini", messages=messages, stream=True) as stream:
            return list(stream)

    first = create(model="gpt-4o-mini", messages=messages)
    eventually(lambda: up.entries() == before + 1)
    assert create(model="gpt-4o-mini", messages=messages) == first
    from_upstream = streamed()
    eventually(lambda: up.entries() == before + 2)
    assert streamed() == from_upstream
    assert upstream.seen[question, False] == upstream.seen[question, True] == 1


def test_another_api_key_never_gets_this_ones_answers(
    sdk: openai.OpenAI, up: Up, upstream: ScriptedUpstream
) -> None:
    question, before = "Whose answer is this?", up.entries()
    ask(sdk, question, stream=False)
    eventually(lambda: up.entries() == before + 1)
    assert ask(sdk, question, stream=False)[0]["x-ai-cache-status"] == "HIT"
    with openai.OpenAI(base_url=f"{up.proxy}/v1", api_key="sk-other", max_retries=0) as other:
        headers, body = ask(other, question, stream=False)
    assert headers["x-ai-cache-status"] == "MISS"
    assert body == upstream.answers[question, False]
    assert upstream.seen[question, False] == 2
