"""Cases 31 to 37: which text of a request is compared, and which request has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviours.stack import PARAPHRASE, RESET, Stack, near, said, stack, system, user
from tests.proxy.rig import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def run(database_url: str) -> AsyncIterator[Stack]:
    async with stack(database_url, {"threshold": 0.9}) as running:
        near(running)
        yield running


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


@pytest.mark.case(22)
@pytest.mark.case(31)
@pytest.mark.parametrize(
    "other",
    [
        {"window": 2},
        {"window": 2, "ignore_roles": []},
        {"extract": "$.messages[0].content"},
    ],
)
async def test_what_an_older_rule_compared_answers_nothing_under_another(
    database_url: str, other: dict[str, Any]
) -> None:
    async with stack(database_url, {"extract": "$.messages[-1].content"}) as run:
        near(run)
        await run.expect("MISS", messages=[user("Hi"), user(RESET)])
        talk = [user("Hi"), user(PARAPHRASE)]
        await run.expect("HIT semantic", messages=talk)

        async def aliased() -> bool:
            return said(await run.chat(messages=talk)) == "HIT exact"

        await eventually(aliased)
        await run.policy(**other)
        await run.expect("MISS", messages=talk)


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


@pytest.mark.case(35)
@pytest.mark.parametrize("field", ["tools", "functions"])
async def test_a_request_that_offers_tools_is_judged_by_equality_alone(
    run: Stack, field: str
) -> None:
    offered: dict[str, Any] = {field: [{"type": "function", "function": {"name": "f"}}]}
    await run.expect("MISS", RESET, **offered)
    await run.expect("HIT exact", RESET, **offered)
    await run.expect("MISS", PARAPHRASE, **offered)
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


@pytest.mark.case(36)
async def test_where_one_message_ends_is_not_forged_by_a_new_line(database_url: str) -> None:
    async with stack(database_url, {"window": 2}) as run:
        for first, second in (("a\nb", "c"), ("a", "b\nc"), ("a\\nb", "c"), ("a\\\nb", "c")):
            await run.expect("MISS", messages=[user(first), user(second)])
        assert len(set(run.provider.texts)) == 4


@pytest.mark.case(37)
async def test_white_space_is_not_embedded(run: Stack) -> None:
    for blank in (" \n\t ", "\u00a0\u2003", ""):
        await run.expect("MISS", blank)
        await run.expect("HIT exact", blank)
    assert run.provider.texts == []
