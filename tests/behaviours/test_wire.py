"""Cases 1 to 6: the wire of AISIX's data planes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.behaviours.stack import Stack, stack, vector

ANSWER = {"id": "c", "model": "m", "message": {"role": "assistant", "content": "Hi"}}


async def put(run: Stack, embedding: list[float], **fields: Any) -> Any:
    body = {"policy_id": "p", "prompt_text": "q", "embedding": embedding, "response": ANSWER}
    return await run.admin("POST", "/dp/cache/put", {**body, **fields})


async def look_up(run: Stack, embedding: list[float], policy: str = "p") -> Any:
    body = {"policy_id": policy, "embedding": embedding}
    return await run.call("POST", "/dp/cache/lookup", body)


@pytest.mark.case(1)
@pytest.mark.case(4)
async def test_what_was_put_by_its_vector_is_found_with_its_tokens(database_url: str) -> None:
    async with stack(database_url, {"sharing": "shared"}) as run:
        stored = await put(run, vector(1.0), prompt_tokens=5, completion_tokens=6)
        assert stored["stored"]
        assert stored["entry_id"]
        assert stored["expires_at"].endswith("Z")
        got = await look_up(run, vector(0.97))
        found = json.loads(got.body)
        assert (got.status, found["hit"], found["response"]) == (200, True, ANSWER)
        assert (found["prompt_tokens"], found["completion_tokens"]) == (5, 6)
        assert found["similarity"] == pytest.approx(0.97, abs=1e-3)


@pytest.mark.case(2)
async def test_a_miss_is_a_200_that_tells_the_best_similarity(database_url: str) -> None:
    async with stack(database_url, {"sharing": "shared"}) as run:
        await put(run, vector(1.0))
        got = await look_up(run, vector(0.4))
        found = json.loads(got.body)
        assert (got.status, found["hit"], "response" in found) == (200, False, False)
        assert found["similarity"] == pytest.approx(0.4, abs=1e-3)


@pytest.mark.case(3)
async def test_an_unknown_policy_is_told_by_code_and_the_request_is_served(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run:
        got = await look_up(run, vector(1.0), policy="nowhere")
        error = json.loads(got.body)["error"]
        assert (got.status, error["code"]) == (404, "NOT_FOUND")
        assert error["message"] == "cache_policy not found"
        await run.admin("DELETE", "/policies/p")
        assert (await run.chat()).status == 200


@pytest.mark.case(1)
async def test_the_wires_own_numbers_and_answers_travel_unchanged(database_url: str) -> None:
    """A float32 in JSON, an answer with an empty text and every usage field, and no exact key."""
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11, "cached_tokens": 0}
    whole = {**ANSWER, "finish_reason": {"other": "x"}, "usage": usage, "message": {"content": ""}}
    async with stack(database_url, {"sharing": "shared", "threshold": 0.85}) as run:
        await put(run, vector(1.0), response=whole, ttl_seconds=60)
        body = {"policy_id": "p", "embedding": vector(0.9), "threshold": 0.8500000238418579}
        found = json.loads((await run.call("POST", "/dp/cache/lookup", body)).body)
        assert (found["hit"], found["response"]) == (True, whole)
        looser = {**body, "embedding": vector(0.8), "threshold": 0.1}
        assert not json.loads((await run.call("POST", "/dp/cache/lookup", looser)).body)["hit"]
        tighter = {**body, "threshold": 0.95}
        assert not json.loads((await run.call("POST", "/dp/cache/lookup", tighter)).body)["hit"]


@pytest.mark.case(4)
async def test_an_equal_put_replaces_and_leaves_no_twin(database_url: str) -> None:
    async with stack(database_url, {"sharing": "shared"}) as run:
        for number in (1, 2):
            await put(run, vector(1.0), response={"number": number})
        await run.holds(1)
        assert json.loads((await look_up(run, vector(1.0))).body)["response"] == {"number": 2}


@pytest.mark.case(6)
async def test_the_closed_sketch_of_the_wire_is_refused_by_the_field_it_lacks(
    database_url: str,
) -> None:
    async with stack(database_url, {"sharing": "shared"}) as run:
        sketch = {"prompt": "q", "model": "m", "scope": "s", "similarity_threshold": 0.9}
        for path in ("/dp/cache/lookup", "/dp/cache/put"):
            got = await run.call("POST", path, {**sketch, "response": ANSWER})
            assert (got.status, b"policy_id" in got.body) == (400, True)


@pytest.mark.case(5)
async def test_slashes_behind_the_services_url_do_no_harm(database_url: str) -> None:
    async with stack(database_url, {}, service_suffix="///") as run:
        await run.expect("MISS")
        await run.expect("HIT exact")
