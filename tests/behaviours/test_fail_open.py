"""Cases 53 and 69 to 73: what fails costs a miss, and no more."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.behaviours.stack import (
    PARAPHRASE,
    RESET,
    near,
    proxy_settings,
    running_service,
    said,
    stack,
)
from tests.proxy.rig import always, eventually, started
from tests.servers import answer

if TYPE_CHECKING:
    from cachesvc.store.embedded import EmbeddedPostgres


@pytest.mark.case(69)
@pytest.mark.case(53)
async def test_when_the_service_dies_every_request_is_a_miss_and_nothing_is_kept_elsewhere(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run, AsyncExitStack() as dying:
        service = await dying.enter_async_context(running_service(database_url))
        async with started(proxy_settings(run, service_url=service)) as url:
            known = await run.expect("MISS", RESET, url=url)
            await run.expect("HIT exact", RESET, url=url)
            await dying.aclose()
            for _ in range(3):
                got = await run.expect("MISS", RESET, url=url, kept=False)
                assert (got.status, got.body != known.body) == (200, True)
                assert "fwd=bypass" in (got["cache-status"] or "")
        assert len(run.upstream.seen) == 4
        assert (await run.expect("HIT exact", RESET)).body == known.body


@pytest.mark.case(69)
async def test_without_the_database_every_request_is_a_miss_until_it_is_back(
    database_url: str, postgres: EmbeddedPostgres
) -> None:
    async with stack(database_url, {}, lookup_budget_ms=500) as run:
        near(run)
        known = await run.expect("MISS", RESET)
        await _let_in(postgres.url, database_url, False)
        try:
            for text in (RESET, RESET, PARAPHRASE):
                got = await run.expect("MISS", text, kept=False)
                assert (got.status, got.body != known.body) == (200, True)
        finally:
            await _let_in(postgres.url, database_url, True)

        async def back() -> bool:
            return said(await run.chat(RESET, headers=[("cache-control", "no-store")])) != "MISS"

        await eventually(back)
        assert (await run.expect("HIT exact", RESET)).status == 200


async def _let_in(server_url: str, database_url: str, allowed: bool) -> None:
    """Let nobody into a database and put out who is in it, or let them in again."""
    connection = await asyncpg.connect(server_url)
    name = re.search(r"test_[0-9]+", database_url)
    assert name is not None
    try:
        await connection.execute(f"ALTER DATABASE {name[0]} WITH ALLOW_CONNECTIONS {allowed}")
        if not allowed:
            put_out = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
            await connection.execute(put_out, name[0])
    finally:
        await connection.close()


@pytest.mark.case(53)
async def test_a_proxy_that_never_reached_its_service_judges_nothing(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        nowhere = proxy_settings(run, service_url="http://127.0.0.1:1")
        async with started(nowhere) as url:
            for _ in range(2):
                got = await run.expect(None, url=url)
                assert (got.status, got["cache-status"]) == (200, None)
        assert len(run.upstream.seen) == 2


@pytest.mark.case(70)
async def test_without_an_embedder_the_exact_tier_goes_on(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        run.provider.fault = "500"
        await run.expect("MISS", RESET)
        got = await run.expect("HIT exact", RESET)
        assert got["x-ai-cache-similarity"] is None
        await run.expect("MISS", PARAPHRASE)
        assert await run.metric("cachesvc_embedding_failures_total") >= 1


@pytest.mark.case(71)
@pytest.mark.parametrize(
    "sent",
    [
        b"<html>",
        b"[]",
        b'{"data": []}',
        b'{"data": [{"embedding": "what?"}]}',
        b'{"data": [{"embedding": []}]}',
        b'{"data": [{"embedding": [1, "2"]}]}',
        b'{"data": [{"embedding": [true, false]}]}',
        b'{"data": [{"embedding": [0, 0, 0]}]}',
        b'{"data": [{"embedding": [1e999, 1]}]}',
        b'{"error": {"message": "m"}}',
    ],
)
async def test_a_malformed_vector_is_an_error_and_no_vector(database_url: str, sent: bytes) -> None:
    async with stack(database_url, {}) as run:
        run.provider.server.script = always(answer(sent))
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
        near(run)
        first = await run.expect("MISS", RESET)
        async with started(proxy_settings(run, service_url=replica)) as url:
            assert (await run.expect("HIT exact", RESET, url=url)).body == first.body
            assert (await run.expect("HIT semantic", PARAPHRASE, url=url)).body == first.body
            await run.admin("POST", "/cache/purge", {"policy_id": "p"})
            await run.holds(0)

            async def gone() -> bool:
                probe = [("cache-control", "no-store")]
                return said(await run.chat(RESET, url=url, headers=probe)) == "MISS"

            async with asyncio.timeout(1):
                await eventually(gone)
