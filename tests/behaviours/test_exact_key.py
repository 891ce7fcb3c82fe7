"""Cases 7 to 21: which two requests are the same request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviours.stack import PARAPHRASE, RESET, near, proxy_settings, stack
from tests.proxy.rig import started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.behaviours.stack import Stack

EXACT = {"tiers": ["exact"]}
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"a": 1, "b": {"x": 1, "y": 2}}},
}
SUB = {"type": "function", "function": {"name": "sub"}}


@pytest.fixture
async def run(database_url: str) -> AsyncIterator[Stack]:
    async with stack(database_url, EXACT) as running:
        yield running


def messages(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.case(7)
async def test_the_same_request_again_is_a_hit_and_the_upstream_is_called_once(run: Stack) -> None:
    first = await run.expect("MISS")
    assert (await run.expect("HIT exact")).body == first.body
    assert len(run.upstream.seen) == 1


@pytest.mark.case(8)
async def test_another_model_misses_and_each_then_hits_its_own(run: Stack) -> None:
    answers = {model: (await run.expect("MISS", model=model)).body for model in ("a", "b")}
    for model, body in answers.items():
        assert (await run.expect("HIT exact", model=model)).body == body
    assert answers["a"] != answers["b"]


@pytest.mark.case(9)
async def test_each_parameter_makes_another_request(run: Stack) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"tools": [ADD]},
        {"response_format": {"type": "json_object"}},
        {"seed": 7},
        {"seed": 8},
        {"n": 2},
        {"user": "u"},
        {"invented_by_a_vendor": 1},
    ]
    for change in changes:
        await run.expect("MISS", **change)
    for change in changes:
        await run.expect("HIT exact", **change)


@pytest.mark.case(10)
async def test_the_order_of_keys_does_not_matter_at_any_depth(run: Stack) -> None:
    await run.expect("MISS", tools=[ADD], seed=1)
    turned = {
        "function": {"parameters": {"b": {"y": 2, "x": 1}, "a": 1}, "name": "add"},
        "type": "function",
    }
    body = {"seed": 1, "tools": [turned], "messages": messages("Hello"), "model": "m"}
    got = await run.post("/v1/chat/completions", body)
    assert got["x-ai-cache-tier"] == "exact"


@pytest.mark.case(11)
async def test_the_order_of_tools_matters(run: Stack) -> None:
    orders = [ADD, SUB], [SUB, ADD]
    answers = [(await run.expect("MISS", tools=order)).body for order in orders]
    for order, body in zip(orders, answers, strict=True):
        assert (await run.expect("HIT exact", tools=order)).body == body


@pytest.mark.case(12)
async def test_temperatures_are_one_to_a_thousandth(run: Stack) -> None:
    await run.expect("MISS", temperature=0.2)
    await run.expect("HIT exact", temperature=0.2000001)
    await run.expect("MISS", temperature=0.7)
    await run.expect("MISS", temperature=0.201)


@pytest.mark.case(13)
async def test_another_image_is_another_request_and_the_same_blocks_are_the_same(
    run: Stack,
) -> None:
    def shown(url: str) -> list[dict[str, Any]]:
        text = {"type": "text", "text": "What is this?"}
        return messages([text, {"type": "image_url", "image_url": {"url": url}}])

    await run.expect("MISS", messages=shown("http://x/cat.png"))
    await run.expect("MISS", messages=shown("http://x/dog.png"))
    await run.expect("HIT exact", messages=shown("http://x/cat.png"))


@pytest.mark.case(14)
async def test_histories_that_differ_only_in_a_tool_call_are_two(run: Stack) -> None:
    def history(city: str, call: str) -> list[dict[str, Any]]:
        called = {"id": "1", "type": "function", "function": {"name": "w", "arguments": city}}
        return [
            *messages("Weather?"),
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": call, "content": "sunny"},
        ]

    await run.expect("MISS", messages=history("Paris", "1"))
    await run.expect("MISS", messages=history("Rome", "1"))
    await run.expect("MISS", messages=history("Paris", "2"))
    await run.expect("HIT exact", messages=history("Rome", "1"))


@pytest.mark.case(15)
async def test_a_text_that_looks_like_another_form_is_not_that_form(run: Stack) -> None:
    await run.expect("MISS", messages=messages([{"type": "text", "text": "hi"}]))
    await run.expect("MISS", messages=messages('[{"type": "text", "text": "hi"}]'))
    await run.expect("MISS", messages=messages('[{"text":"hi","type":"text"}]'))
    await run.expect("MISS", messages=messages("hi"))
    await run.expect("MISS", messages=messages("null"))
    await run.expect("MISS", messages=messages(None))


@pytest.mark.case(16)
async def test_an_explicit_null_is_stable_and_is_not_absent(run: Stack) -> None:
    await run.expect("MISS", stop=None)
    await run.expect("HIT exact", stop=None)
    await run.expect("MISS")
    inner = [{"role": "user", "content": "Hello", "refusal": None}]
    await run.expect("MISS", messages=inner)
    await run.expect("HIT exact", messages=inner)


@pytest.mark.case(17)
async def test_a_stream_not_asked_for_is_one_request_however_it_is_written(run: Stack) -> None:
    await run.expect("MISS")
    for stream in (False, None, 0):
        await run.expect("HIT exact", stream=stream)
    await run.expect("MISS", stream=True)


@pytest.mark.case(18)
async def test_a_model_forced_by_the_operator_makes_the_callers_irrelevant(
    database_url: str,
) -> None:
    async with stack(database_url, EXACT, forced={"model": "the-one"}) as run:
        await run.expect("MISS", model="a")
        await run.expect("HIT exact", model="b")


@pytest.mark.case(19)
async def test_what_one_proxy_forces_keeps_its_answers_from_another(database_url: str) -> None:
    async with stack(database_url, EXACT, forced={"temperature": 0.0}) as run:
        await run.expect("MISS")
        other = proxy_settings(run, forced={"temperature": 1.0})
        async with started(other) as url:
            await run.expect("MISS", url=url)
        async with started(proxy_settings(run, forced={"temperature": 0.0})) as url:
            await run.expect("HIT exact", url=url)


@pytest.mark.case(20)
async def test_no_separator_in_a_value_forges_another_scope(database_url: str) -> None:
    policy = {**EXACT, "sharing": "shared", "scope_headers": ["x-org", "x-user"]}
    async with stack(database_url, policy, credential_proof_seconds=0) as run:
        pairs = [("a:b", "c"), ("a", "b:c"), ("a=b", "c"), ("a", "b=c"), ("c", "a:b"), ("a,b", "c")]
        for org, user in pairs:
            await run.expect("MISS", headers=[("x-org", org), ("x-user", user)])
        await run.expect("MISS", headers=[("x-org", "a"), ("x-org", "b"), ("x-user", "c")])
        await run.expect("MISS", headers=[("x-org", "a:b")])
        await run.expect("MISS", headers=[("x-org", "a:b"), ("x-user", "")])
        for orgs in (("a:b", "c"), ("a", "b:c"), ("a", "b", "c")):  # one header, sent several times
            await run.expect("MISS", headers=[("x-org", org) for org in orgs])
        await run.expect("HIT exact", headers=[("x-org", "a:b"), ("x-user", "c")])


@pytest.mark.case(21)
async def test_neither_generations_nor_policies_nor_keys_share_in_either_tier(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        await run.expect("MISS", RESET)
        await run.expect("MISS", PARAPHRASE, key="bob")
        await run.policy("q", priority=1)
        await run.expect("MISS", PARAPHRASE)
        await run.admin("POST", "/cache/purge", {"policy_id": "q"})
        await run.holds(2)
        await run.expect("MISS", RESET)
        await run.expect("HIT semantic", PARAPHRASE)
