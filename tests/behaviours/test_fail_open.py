"""Cases 53 and 69 to 73: what fails costs a miss, and no more."""

from __future__ import annotations

import asyncio

import pytest

from tests.behaviours.stack import proxy_settings, running_service, said, stack, vector
from tests.proxy.rig import started

RESET, PARAPHRASE = "How do I reset it?", "How is it reset?"


@pytest.mark.case(69)
@pytest.mark.case(53)
async def test_without_the_service_every_request_is_answered_by_the_upstream(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run:
        nowhere = proxy_settings(run, service_url="http://127.0.0.1:1")
        async with started(nowhere) as url:
            for _ in range(2):
                got = await run.chat(url=url)
                # No list of policies was ever read: nothing is kept anywhere, and nothing said.
                assert (got.status, said(got)) == (200, None)
        assert len(run.upstream.seen) == 2


@pytest.mark.case(70)
async def test_without_an_embedder_the_exact_tier_goes_on(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(0.99)}
        run.provider.fault = "500"
        await run.expect("MISS", RESET)
        got = await run.expect("HIT exact", RESET)
        assert got["x-ai-cache-similarity"] is None
        await run.expect("MISS", PARAPHRASE)
        assert await run.metric("cachesvc_embedding_failures_total") >= 1


@pytest.mark.case(71)
async def test_a_malformed_vector_is_an_error_and_no_vector(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        run.provider.fault = "garbage"
        got = await run.expect("MISS", RESET)
        assert "detail=embedder_failed" in (got["cache-status"] or "")
        (entry,) = (await run.admin("GET", "/cache/entries"))["entries"]
        assert entry["dimensions"] is None


@pytest.mark.case(72)
async def test_without_any_embedder_a_paraphrase_pays_the_upstream(database_url: str) -> None:
    async with stack(database_url, {}, embed=False) as run:
        await run.expect("MISS", RESET)
        await run.expect("HIT exact", RESET)
        await run.expect("MISS", PARAPHRASE)


@pytest.mark.case(73)
async def test_what_one_replica_keeps_the_other_finds_in_both_tiers(database_url: str) -> None:
    async with stack(database_url, {}) as run, running_service(database_url) as replica:
        run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(0.99)}
        first = await run.expect("MISS", RESET)
        async with started(proxy_settings(run, service_url=replica)) as url:
            assert (await run.expect("HIT exact", RESET, url=url)).body == first.body
            assert (await run.expect("HIT semantic", PARAPHRASE, url=url)).body == first.body
            await run.admin("POST", "/cache/purge", {"policy_id": "p"})
            await run.holds(0)
            await asyncio.sleep(0)
            await run.expect("MISS", RESET, url=url)
