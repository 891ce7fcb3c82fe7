"""A policy may have an embedder of its own, and never gets another's vectors."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cachesvc.core.policy import Policy
from cachesvc.proxy.embed_tables import EmbedTables
from cachesvc.proxy.telemetry import Telemetry
from cachesvc.settings import Embed
from tests.proxy.fakes import FakeProvider
from tests.proxy.rig import eventually, rig
from tests.servers import ask

if TYPE_CHECKING:
    import pytest


async def test_the_embedder_that_a_policy_names_embeds_for_lookup_and_put() -> None:
    async with AsyncExitStack() as stack:
        own = FakeProvider()
        await stack.enter_async_context(own.server)
        table = Embed(provider="openai", base_url=f"{own.server.url}/v1", model="own")
        policies = {
            "a": Policy(applies_to="model:a", embed="own"),
            "b": Policy(applies_to="model:b"),
        }
        proxy = await stack.enter_async_context(
            rig(policies=policies, embed=True, tables={"own": table})
        )
        warmed = len(own.texts), len(proxy.provider.texts)
        await proxy.chat("asked of a", model="a")
        await proxy.kept(1)
        assert (len(own.texts), len(proxy.provider.texts)) == (warmed[0] + 1, warmed[1])
        await proxy.chat("asked of b", model="b")
        await proxy.kept(2)
        assert (len(own.texts), len(proxy.provider.texts)) == (warmed[0] + 1, warmed[1] + 1)
        first, second = proxy.service.puts
        assert first.embedding
        assert second.embedding
        assert first.space != second.space
        asked = {one.space for one in proxy.service.lookups if one.embedding is not None}
        assert asked == {first.space, second.space}


async def test_a_table_that_is_not_there_leaves_the_exact_tier_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with rig(policy=Policy(embed="nowhere"), embed=True) as proxy:
        warmed = len(proxy.provider.texts)
        for _ in range(2):
            assert (await proxy.chat("asked")).status == 200
            await proxy.kept(1)
        assert len(proxy.provider.texts) == warmed
        assert all(one.embedding is None for one in proxy.service.lookups)
        found = await proxy.metrics()
        failures = 'cachesvc_embedding_failures_total{cause="no_such_table",provider=""}'
        assert found[failures] == 2
        assert (await ask(proxy.url, "GET", "/readyz")).status == 200
    told = [record.getMessage() for record in caplog.records if "nowhere" in record.getMessage()]
    assert told == [
        "policy p names [embed.nowhere], which this proxy does not have: exact matches only"
    ]


async def test_a_table_that_is_not_there_is_told_before_anybody_asks_and_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policies = {
        "exact": Policy(embed="nowhere", tiers=("exact",)),
        "off": Policy(embed="nowhere", enabled=False),
        "p": Policy(embed="nowhere"),
    }
    async with rig(policies=policies, embed=True) as proxy:
        before = proxy.service.list_calls
        await eventually(lambda: proxy.service.list_calls >= before + 3)
        told = [r.getMessage() for r in caplog.records if "nowhere" in r.getMessage()]
        assert [line.split(" names ")[0] for line in told] == ["policy p"]
        proxy.service.policies["q"] = Policy(embed="nowhere")
        await eventually(lambda: any("policy q names" in r.getMessage() for r in caplog.records))


async def test_a_policy_with_a_remote_embedder_has_time_for_it() -> None:
    """Unless the operator set a budget: 1000 ms, where the local model has 50."""
    async with AsyncExitStack() as stack:
        own = FakeProvider()
        await stack.enter_async_context(own.server)
        table = Embed(provider="openai", base_url=f"{own.server.url}/v1", model="own")
        policies = {"p": Policy(embed="own")}
        proxy = await stack.enter_async_context(
            rig(policies=policies, budget_ms=None, tables={"own": table})
        )
        own.fault = "wait"
        asking = asyncio.create_task(proxy.chat("asked"))
        await eventually(lambda: own.texts == ["asked"])
        await asyncio.sleep(0.2)  # four times what the local model has
        own.go.set()
        assert "detail=no_entry" in ((await asking)["cache-status"] or "")
        assert [bool(one.embedding) for one in proxy.service.lookups] == [False, True]


async def test_tables_that_share_an_embedder_share_its_queue_and_its_circuit() -> None:
    class Local:
        provider = "local"
        space = "here"
        warmed = closed = 0

        async def warm(self) -> None:
            self.warmed += 1

        async def embed(self, text: str, *, request_id: str | None = None) -> bytes | None:
            return None

        async def close(self) -> None:
            self.closed += 1

    local = Local()
    tables = EmbedTables({"": local, "own": local, "none": None}, Telemetry())
    assert tables.of(Policy()) is tables.of(Policy(embed="own"))
    assert tables.of(Policy()) is not tables.of(Policy(embed="none"))
    assert len(tables.missing()) == 2
    for work in tables.warming():
        await work
    assert tables.missing() == []
    await tables.close()
    assert (local.warmed, local.closed) == (1, 1)


async def test_an_embedder_that_fails_takes_no_other_with_it() -> None:
    broken = Embed(provider="openai", base_url="http://127.0.0.1:1/v1", model="x")
    policies = {
        "a": Policy(applies_to="model:a", embed="broken"),
        "b": Policy(applies_to="model:b"),
    }
    async with rig(policies=policies, embed=True, tables={"broken": broken}) as proxy:
        for number in range(8):
            assert (await proxy.chat(f"a {number}", model="a"))["x-ai-cache-status"] == "MISS"
        await proxy.chat("asked of b", model="b")
        asked = [one for one in proxy.service.lookups if one.embedding is not None]
        assert [one.policy_id for one in asked] == ["b"]
