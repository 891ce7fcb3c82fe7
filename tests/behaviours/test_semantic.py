"""Cases 22 to 30 and 39 to 42: which two questions may share an answer."""

from __future__ import annotations

import base64
import json
import math
import struct
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc.settings import Embed, Settings
from tests.behaviours.stack import (
    PARAPHRASE,
    RESET,
    Stack,
    near,
    proxy_settings,
    said,
    stack,
    system,
    user,
    vector,
)
from tests.proxy.fakes import FakeProvider
from tests.proxy.rig import eventually, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Got

PRICE = "What does it cost?"


@pytest.fixture
async def run(database_url: str) -> AsyncIterator[Stack]:
    async with stack(database_url, {"threshold": 0.9}) as running:
        near(running)
        yield running


@pytest.mark.case(22)
async def test_a_paraphrase_is_a_semantic_hit_and_the_same_one_again_is_exact(run: Stack) -> None:
    first = await run.expect("MISS", RESET)
    hit = await run.expect("HIT semantic", PARAPHRASE)
    assert hit.body == first.body
    assert 0.9 <= float(hit["x-ai-cache-similarity"] or 0) <= 1

    async def aliased() -> bool:
        return said(await run.chat(PARAPHRASE)) == "HIT exact"

    await eventually(aliased)
    before = len(run.provider.texts)
    exact = await run.expect("HIT exact", PARAPHRASE)
    assert len(run.provider.texts) == before
    assert exact["x-ai-cache-similarity"] is None
    assert len(run.upstream.seen) == 1


@pytest.mark.case(23)
async def test_a_miss_costs_one_embedding_call(run: Stack) -> None:
    await run.expect("MISS", RESET)
    assert run.provider.texts == [RESET]


@pytest.mark.case(24)
async def test_an_unrelated_question_misses(run: Stack) -> None:
    run.provider.vectors[PRICE] = vector(-0.148)
    await run.expect("MISS", RESET)
    await run.expect("MISS", PRICE)


@pytest.mark.case(25)
@pytest.mark.parametrize(
    ("cosine", "threshold", "status"),
    [
        (0.9, 0.95, "MISS"),
        (0.9, 0.85, "HIT semantic"),
        (0.706, 0.8, "MISS"),
        (0.706, 0.6, "HIT semantic"),
        (1.0, 1.0, "HIT semantic"),
    ],
)
async def test_the_threshold_decides(
    database_url: str, cosine: float, threshold: float, status: str
) -> None:
    async with stack(database_url, {"threshold": threshold}) as run:
        near(run, cosine)
        await run.expect("MISS", RESET)
        got = await run.expect(status, PARAPHRASE)
        if status != "MISS":
            assert float(got["x-ai-cache-similarity"] or 0) == pytest.approx(cosine, abs=1e-3)


@pytest.mark.case(26)
@pytest.mark.parametrize("order", [("far", "nearer"), ("nearer", "far")])
async def test_the_nearest_of_two_answers_whichever_came_first(
    database_url: str, order: tuple[str, str]
) -> None:
    async with stack(database_url, {"threshold": 0.9, "top_k": 1}) as run:
        run.provider.vectors |= {"far": vector(0.92, 2), "nearer": vector(0.97, 3)}
        run.provider.vectors[RESET] = vector(1.0)
        answers = {text: (await run.expect("MISS", text)).body for text in order}
        hit = await run.expect("HIT semantic", RESET)
        assert hit.body == answers["nearer"]
        assert float(hit["x-ai-cache-similarity"] or 0) == pytest.approx(0.97, abs=1e-3)


@pytest.mark.case(27)
@pytest.mark.case(28)
@pytest.mark.parametrize(
    "change", [{"temperature": 0.7}, {"model": "other"}, {"seed": 1}, {"n": 2}]
)
async def test_what_is_asked_otherwise_is_not_compared(run: Stack, change: dict[str, Any]) -> None:
    await run.expect("MISS", RESET)
    await run.expect("MISS", PARAPHRASE, **change)
    await run.expect("HIT semantic", RESET, **change)


@pytest.mark.case(29)
async def test_a_question_about_another_document_is_another_question(run: Stack) -> None:
    await run.expect("MISS", messages=system("Document A.", RESET))
    await run.expect("MISS", messages=system("Document B.", PARAPHRASE))
    await run.expect("HIT semantic", messages=system("Document A.", PARAPHRASE))


@pytest.mark.case(30)
async def test_everything_outside_the_window_must_be_equal(database_url: str) -> None:
    policy = {"threshold": 0.9, "window": 2}
    async with stack(database_url, policy) as run:
        run.provider.vectors |= {
            f"one\n{RESET}": vector(1.0),
            f"two\n{RESET}": vector(0.97),
            f"one\n{PARAPHRASE}": vector(0.95),
        }
        await run.expect("MISS", messages=[user("a"), user("one"), user(RESET)])
        await run.expect("HIT semantic", messages=[user("a"), user("two"), user(RESET)])
        await run.expect("MISS", messages=[user("b"), user("one"), user(PARAPHRASE)])
        await run.expect("MISS", messages=[user("one"), user(PARAPHRASE)])


@pytest.mark.case(30)
async def test_where_everything_is_in_the_window_everything_is_compared(database_url: str) -> None:
    policy = {"threshold": 0.9, "window": 4, "ignore_roles": []}
    async with stack(database_url, policy) as run:
        run.provider.vectors |= {f"A\n{RESET}": vector(1.0), f"B\n{PARAPHRASE}": vector(0.95)}
        first = await run.expect("MISS", messages=system("A", RESET))
        hit = await run.expect("HIT semantic", messages=system("B", PARAPHRASE))
        assert hit.body == first.body
        forged = [{**message, "role": "user"} for message in system("B", PARAPHRASE)]
        await run.expect("MISS", messages=forged)


@pytest.mark.case(39)
@pytest.mark.case(41)
async def test_other_dimensions_and_vectors_without_likeness_never_hit(database_url: str) -> None:
    async with stack(database_url, {"threshold": 0.0, "sharing": "shared"}) as run:

        async def look_up(embedding: Any) -> Got:
            asked = {"policy_id": "p", "embedding": embedding}
            return await run.call("POST", "/cache/lookup", asked)

        stored = {"policy_id": "p", "embedding": vector(1.0), "response": 1, "prompt_text": "q"}
        await run.admin("POST", "/cache/put", stored)
        longer = {**stored, "embedding": [1.0] * 9, "response": 2}
        for other in ([1.0], [1.0] * 9, vector(0.0), vector(-0.5)):
            found = await look_up(other)
            assert (found.status, b'"hit":false' in found.body) == (200, True)
        await run.admin("POST", "/cache/put", longer)
        for embedding, response in ((vector(0.5), 1), ([1.0] * 9, 2)):
            answered = json.loads((await look_up(embedding)).body)
            assert (answered["hit"], answered["response"]) == (True, response)


@pytest.mark.case(39)
async def test_a_vector_without_direction_is_refused_and_never_compared(database_url: str) -> None:
    async with stack(database_url, {"threshold": 0.0, "sharing": "shared"}) as run:
        for numbers in ([0.0] * 8, [1e-13] * 8, [math.nan] * 8, [math.inf, *[0.0] * 7]):
            packed = base64.b64encode(struct.pack("<8f", *numbers)).decode()
            for path in ("/cache/lookup", "/cache/put"):
                asked = {"policy_id": "p", "embedding": packed, "response": 1}
                got = await run.call("POST", path, asked)
                assert (got.status, b"embedding" in got.body) == (422, True), numbers
        await run.holds(0)


@pytest.mark.case(40)
@pytest.mark.parametrize("other", ["model", "endpoint", "provider"])
async def test_another_embedder_with_the_same_vectors_never_meets_the_old_ones(
    run: Stack, other: str
) -> None:
    await run.expect("MISS", RESET)
    async with AsyncExitStack() as parts:
        twin = FakeProvider(vectors=run.provider.vectors)
        await parts.enter_async_context(twin.server)
        old = run.provider.server.url
        table = {
            "model": Embed(provider="openai", base_url=f"{old}/v1", model="another"),
            "endpoint": Embed(provider="openai", base_url=f"{twin.server.url}/v1"),
            "provider": Embed(provider="azure_openai", base_url=old, model="m", api_key="k"),
        }[other]
        settings = Settings(proxy=proxy_settings(run).proxy, embed=table)
        url = await parts.enter_async_context(started(settings))
        own = await run.expect("MISS", PARAPHRASE, url=url)
        await run.expect("HIT exact", RESET, url=url)  # the very same request needs no vector
        run.provider.vectors["again"] = vector(0.98, 2)
        assert (await run.expect("HIT semantic", "again", url=url)).body == own.body


@pytest.mark.case(42)
async def test_the_same_vector_in_another_partition_is_invisible(run: Stack) -> None:
    run.provider.vectors |= {"same": vector(1.0), "again": vector(1.0)}
    first = await run.expect("MISS", messages=system("one", "same"))
    await run.expect("MISS", messages=system("two", "again"))
    assert (await run.expect("HIT semantic", messages=system("one", "again"))).body == first.body


@pytest.mark.case(42)
async def test_one_partition_among_many_with_the_same_vector_finds_its_own(
    database_url: str,
) -> None:
    async with stack(database_url, {"sharing": "shared"}) as run:

        def put(number: int) -> dict[str, Any]:
            part = f"{number:064x}"
            vectors = {"embedding": vector(1.0), "partition": part, "prompt_text": "q"}
            return {"policy_id": "p", "response": number, **vectors}

        for number in range(60):
            await run.admin("POST", "/cache/put", put(number))
        for number in (0, 29, 59):
            asked = {"policy_id": "p", "embedding": vector(0.97), "partition": f"{number:064x}"}
            assert (await run.admin("POST", "/cache/lookup", asked))["response"] == number
        nowhere = {"policy_id": "p", "embedding": vector(1.0), "partition": "f" * 64}
        assert not (await run.admin("POST", "/cache/lookup", nowhere))["hit"]
