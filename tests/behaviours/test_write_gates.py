"""Cases 64 to 68: which answers are kept, and what is told of them."""

from __future__ import annotations

import json

import pytest

from tests.behaviours.stack import counting, stack
from tests.proxy.rig import always, completion, eventually
from tests.servers import answer


@pytest.mark.case(64)
@pytest.mark.parametrize(
    "status", ["401 Unauthorized", "201 Created", "429 Slow", "500 X", "203 Y"]
)
async def test_nothing_but_a_200_is_kept(database_url: str, status: str) -> None:
    async with stack(database_url, {}, always(answer(completion(), status=status))) as run:
        got = await run.expect("MISS", kept=False)
        assert got.status == int(status.split()[0])
        await run.refused(1)
        run.upstream.script = counting()
        await run.expect("MISS")
        await run.expect("HIT exact")


@pytest.mark.case(65)
@pytest.mark.parametrize("cap", [0, 100])
async def test_an_answer_over_the_cap_misses_every_time(database_url: str, cap: int) -> None:
    script = always(answer(completion("x" * 200)))
    async with stack(database_url, {"max_body_bytes": cap}, script) as run:
        for count in (1, 2, 3):
            await run.expect("MISS", kept=False)
            await run.refused(count)
        assert len(run.upstream.seen) == 3


@pytest.mark.case(66)
async def test_null_content_comes_back_as_null(database_url: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    whole = json.dumps({"id": "c", "choices": [choice]}, indent=3).encode()
    async with stack(database_url, {}, always(answer(whole))) as run:
        await run.expect("MISS")
        hit = await run.expect("HIT exact")
        assert hit.body == whole
        assert json.loads(hit.body)["choices"][0]["message"]["content"] is None


@pytest.mark.case(67)
@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "error", "cancelled"])
async def test_an_answer_that_a_filter_stopped_is_not_kept(database_url: str, reason: str) -> None:
    script = always(answer(completion(finish_reason=reason)))
    async with stack(database_url, {}, script) as run:
        for count in (1, 2):
            await run.expect("MISS", kept=False)
            await run.refused(count)
        run.upstream.script = always(answer(completion(finish_reason="length")))
        await run.expect("MISS")
        await run.expect("HIT exact")


@pytest.mark.case(68)
async def test_a_hit_tells_the_tokens_it_saved_and_a_miss_saves_none(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        await run.expect("MISS")

        async def saved(kind: str) -> float:
            return await run.metric("cachesvc_tokens_saved_total", kind=kind)

        assert (await saved("prompt"), await saved("completion")) == (0, 0)
        await run.expect("HIT exact")

        async def counted() -> bool:
            return (await saved("prompt"), await saved("completion")) == (7, 9)

        await eventually(counted)
        (stats,) = (await run.admin("GET", "/stats"))["policies"]
        assert (stats["prompt_tokens_saved"], stats["completion_tokens_saved"]) == (7, 9)
