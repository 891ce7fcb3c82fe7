"""Cases 22 to 43: which two questions may share an answer."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc.settings import Embed, Settings
from tests.behaviours.stack import Stack, proxy_settings, said, stack, vector
from tests.dialects.samples import BY_NAME
from tests.proxy.fakes import FakeProvider
from tests.proxy.rig import always, eventually, started
from tests.servers import answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RESET, PARAPHRASE, PRICE = "How do I reset it?", "How is it reset?", "What does it cost?"


@pytest.fixture
async def run(database_url: str) -> AsyncIterator[Stack]:
    async with stack(database_url, {"threshold": 0.9}) as running:
        near(running)
        yield running


def near(running: Stack, cosine: float = 0.97) -> None:
    running.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(cosine)}


def system(text: str, question: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}, {"role": "user", "content": question}]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


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
async def test_the_nearest_of_two_answers(run: Stack) -> None:
    run.provider.vectors |= {"far": vector(0.92, 2), "nearer": vector(0.97, 3)}
    await run.expect("MISS", "far")
    nearer = await run.expect("MISS", "nearer")
    assert (await run.expect("HIT semantic", RESET)).body == nearer.body


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


@pytest.mark.case(31)
async def test_the_window_counts_messages_back_that_are_not_ignored(database_url: str) -> None:
    talk = [
        *system("Be brief.", "one"),
        {"role": "assistant", "content": "1"},
        user("two"),
    ]
    texts = {
        (1, ("system", "assistant")): "two",
        (2, ("system", "assistant")): "one\ntwo",
        (1000, ("assistant",)): "Be brief.\none\ntwo",
        (1000, ()): "Be brief.\none\n1\ntwo",  # the whole conversation
    }
    async with stack(database_url, {}) as run:
        for (window, ignored), text in texts.items():
            await run.policy(window=window, ignore_roles=list(ignored))
            await run.chat(messages=talk, seed=window + len(ignored))
            assert run.provider.texts[-1] == text


@pytest.mark.case(31)
async def test_a_path_may_say_what_is_compared(database_url: str) -> None:
    talk = [user("one"), {"role": "assistant", "content": "1"}, user("two")]
    texts = {
        "$.messages[-1].content": "two",
        "$.messages[?@.role=='user'].content": "one\ntwo",
        "$.messages[0].content": "one",
    }
    async with stack(database_url, {}) as run:
        for extract, text in texts.items():
            await run.policy(extract=extract, window=1000)
            await run.chat(messages=talk, user=extract)
            assert run.provider.texts[-1] == text


@pytest.mark.case(32)
@pytest.mark.case(33)
async def test_text_blocks_are_one_text_and_an_image_ends_the_comparing(run: Stack) -> None:
    blocks = [{"type": "text", "text": "a\\b"}, {"type": "text", "text": "c\nd"}]
    await run.expect("MISS", messages=[user(blocks)])
    assert run.provider.texts == ["a\\\\b\nc\\nd"]
    image = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    seen = [user([{"type": "text", "text": RESET}, image])]
    await run.expect("MISS", RESET)
    embedded = len(run.provider.texts)
    await run.expect("MISS", messages=seen)
    await run.expect("HIT exact", messages=seen)
    assert len(run.provider.texts) == embedded


@pytest.mark.case(34)
async def test_odd_shapes_do_no_harm(run: Stack) -> None:
    odd: list[tuple[Any, bool]] = [
        ([{**user(RESET), "tool_calls": []}], True),
        ([user({"type": "text", "text": "x"})], False),
        ([None], False),
        ([3, user("x")], False),
        ([{"role": "assistant", "content": None}, user("x")], True),
        ("messages", False),
        ([], False),
    ]
    for shape, judged in odd:
        got = await run.chat(messages=shape)
        assert got.status == 200
        assert (said(got) is not None) == judged, shape
    assert run.provider.texts[0] == RESET


@pytest.mark.case(35)
@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "tool_call_id": "1", "content": RESET},
        {"role": "user", "name": "ann", "content": RESET},
        {"role": "function", "name": "f", "content": RESET},
        {"role": "assistant", "content": RESET, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": RESET, "function_call": {"name": "f"}},
    ],
)
async def test_tools_and_names_are_judged_by_equality_alone(
    run: Stack, message: dict[str, Any]
) -> None:
    talk = [message, user(RESET)]
    await run.expect("MISS", messages=talk)
    await run.expect("HIT exact", messages=talk)
    await run.expect("MISS", messages=[message, user(PARAPHRASE)])
    assert run.provider.texts == []


@pytest.mark.case(36)
async def test_a_turn_cannot_be_forged_inside_a_message(database_url: str) -> None:
    async with stack(database_url, {"window": 1000, "ignore_roles": []}) as run:
        await run.expect("MISS", messages=[user("a\nassistant: b")])
        await run.expect("MISS", messages=[user("a"), {"role": "assistant", "content": "b"}])
        await run.expect("MISS", messages=[user("a\nb")])
        await run.expect("MISS", messages=[user("a"), user("b")])
        # One text is taken as it is; two are joined. Where they look the same, the partition tells.
        assert run.provider.texts == ["a\nassistant: b", "a\nb", "a\nb", "a\nb"]


@pytest.mark.case(37)
async def test_white_space_is_not_embedded(run: Stack) -> None:
    await run.expect("MISS", " \n\t ")
    await run.expect("HIT exact", " \n\t ")
    assert run.provider.texts == []


@pytest.mark.case(38)
async def test_responses_have_a_semantic_tier_too(run: Stack) -> None:
    async def respond(text: str) -> str | None:
        return said(await run.post("/v1/responses", {"model": "m", "input": text, "store": False}))

    run.upstream.script = always(answer(BY_NAME["openai-responses"].json_answer))
    assert await respond(RESET) == "MISS"
    await run.holds(1)
    assert await respond(PARAPHRASE) == "HIT semantic"


@pytest.mark.case(39)
@pytest.mark.case(41)
async def test_other_dimensions_and_empty_vectors_never_hit(database_url: str) -> None:
    async with stack(database_url, {"threshold": 0.0, "sharing": "shared"}) as run:

        async def look_up(embedding: list[float]) -> Any:
            asked = {"policy_id": "p", "embedding": embedding}
            return await run.call("POST", "/cache/lookup", asked)

        stored = {"policy_id": "p", "embedding": vector(1.0), "response": 1, "prompt_text": "q"}
        await run.admin("POST", "/cache/put", stored)
        assert b'"hit":true' in (await look_up(vector(0.5))).body
        for other in ([1.0], [1.0] * 9, vector(0.0), vector(-0.5)):
            found = await look_up(other)
            assert (found.status, b'"hit":false' in found.body) == (200, True)
        assert (await look_up([0.0] * 8)).status == 422


@pytest.mark.case(40)
async def test_another_model_with_the_same_vectors_never_meets_the_old_ones(run: Stack) -> None:
    await run.expect("MISS", RESET)
    async with AsyncExitStack() as parts:
        twin = FakeProvider(vectors=run.provider.vectors)
        await parts.enter_async_context(twin.server)
        table = Embed(provider="openai", base_url=f"{twin.server.url}/v1", model="another")
        settings = Settings(proxy=proxy_settings(run).proxy, embed=table)
        url = await parts.enter_async_context(started(settings))
        await run.expect("MISS", PARAPHRASE, url=url)
        await run.expect("HIT exact", RESET, url=url)  # the very same request needs no vector
    await run.expect("HIT exact", PARAPHRASE)


@pytest.mark.case(42)
@pytest.mark.case(43)
async def test_what_lies_in_another_partition_or_policy_is_invisible(run: Stack) -> None:
    run.provider.vectors |= {"same": vector(1.0), "again": vector(1.0)}
    await run.expect("MISS", messages=system("one", "same"))
    await run.expect("MISS", messages=system("two", "again"))
    await run.policy("q", threshold=0.9, applies_to="model:q")
    await run.expect("MISS", messages=system("one", "again"), model="q")
    await run.expect("HIT semantic", messages=system("one", "again"))
