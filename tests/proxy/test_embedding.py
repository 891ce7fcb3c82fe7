"""One embedding call per miss, shared by lookup and put; and what its failure costs."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc import wire as contract
from cachesvc.core.policy import Policy
from tests.proxy.rig import Rig, eventually, rig, started
from tests.servers import ask

if TYPE_CHECKING:
    from tests.servers import Got, Seen, Wire

ASKED, PARAPHRASE, OTHER = "How do I reset it?", "How is it reset?", "What does it cost?"


def _detail(got: Got) -> str:
    return (got["cache-status"] or "").rpartition("detail=")[2]


def _alike(proxy: Rig, similarity: float = 0.97) -> None:
    proxy.provider.vectors[ASKED] = [1.0, 0, 0, 0, 0, 0, 0, 0]
    rest = (1 - similarity**2) ** 0.5
    proxy.provider.vectors[PARAPHRASE] = [similarity, rest, 0, 0, 0, 0, 0, 0]
    proxy.provider.vectors[OTHER] = [0, 0, 1.0, 0, 0, 0, 0, 0]


async def test_a_paraphrase_hits_and_a_miss_costs_one_call() -> None:
    async with rig(embed=True) as proxy:
        _alike(proxy)
        await proxy.chat(ASKED)
        await proxy.kept(1)
        assert proxy.provider.texts == [ASKED]
        hit = await proxy.chat(PARAPHRASE)
        assert (hit["x-ai-cache-tier"], hit["x-ai-cache-similarity"]) == ("semantic", "0.9700")
        assert _detail(hit) == "semantic"
        assert (await proxy.chat(OTHER))["x-ai-cache-status"] == "MISS"
        await proxy.kept(2)
        assert proxy.provider.texts == [ASKED, PARAPHRASE, OTHER]
        assert len(proxy.upstream.seen) == 2


async def test_an_exact_hit_costs_no_embedding_and_one_call_to_the_service() -> None:
    async with rig(embed=True) as proxy:
        await proxy.chat(ASKED)
        await proxy.kept(1)
        proxy.provider.texts.clear()
        proxy.service.lookups.clear()
        assert (await proxy.chat(ASKED))["x-ai-cache-tier"] == "exact"
        assert proxy.provider.texts == []
        (asked,) = proxy.service.lookups
        assert asked.embedding is None


async def test_the_two_calls_of_one_miss_say_that_they_belong_together() -> None:
    async with rig(embed=True) as proxy:
        await proxy.chat(ASKED)
        exact, nearest = proxy.service.lookups
        assert (exact.after_exact or False, nearest.after_exact) == (False, True)
        assert exact.exact_key == nearest.exact_key
        assert exact.scope == nearest.scope
        assert (nearest.prompt_text, exact.prompt_text) == (ASKED, None)


async def test_an_exact_lookup_names_the_space_too() -> None:
    """So that an alias to an entry of another space does not answer."""
    async with rig(embed=True) as proxy:
        await proxy.chat(ASKED)
        exact, nearest = proxy.service.lookups
        assert exact.space == nearest.space
        assert exact.space
    async with rig() as without:
        await without.chat(ASKED)
        assert without.service.lookups[0].space is None


@pytest.mark.parametrize("fault", ["500", "garbage", "close"])
async def test_when_the_embedder_fails_the_exact_tier_still_learns(fault: str) -> None:
    async with rig(embed=True) as proxy:
        _alike(proxy)
        proxy.provider.fault = fault
        got = await proxy.chat(ASKED)
        assert (got["x-ai-cache-status"], _detail(got)) == ("MISS", "embedder_failed")
        assert "fwd=bypass" in (got["cache-status"] or "")
        await proxy.kept(1)
        put = proxy.service.puts[0]
        assert (put.embedding, put.partition, put.space) == (None, None, None)
        assert proxy.provider.texts == [ASKED]
        hit = await proxy.chat(ASKED)
        assert (hit["x-ai-cache-tier"], hit["x-ai-cache-similarity"]) == ("exact", None)
        proxy.provider.fault = ""
        assert (await proxy.chat(PARAPHRASE))["x-ai-cache-status"] == "MISS"
        counted = await proxy.metrics()
        assert counted['cachesvc_fail_open_total{cause="embedder_failed"}'] == 1
        failures = [v for k, v in counted.items() if "embedding_failures_total" in k]
        assert failures == [1]


async def test_a_slow_embedder_costs_the_budget_and_its_vector_is_kept_all_the_same() -> None:
    async with rig(embed=True, budget_ms=150) as proxy:
        proxy.provider.fault = "wait"
        async with asyncio.timeout(5):  # the embedder would take for ever
            got = await proxy.chat(ASKED)
        assert (got.status, _detail(got)) == (200, "lookup_timeout")
        assert proxy.service.puts == []
        proxy.provider.go.set()
        await proxy.kept(1)
        assert proxy.service.puts[0].embedding is not None
        assert proxy.provider.texts == [ASKED]


async def test_a_caller_who_leaves_takes_the_embedding_along() -> None:
    async with rig(embed=True, budget_ms=50) as proxy:
        proxy.provider.fault = "wait"

        async def script(seen: Seen, wire: Wire) -> None:
            wire.reset()

        proxy.upstream.script = script
        assert (await proxy.chat(ASKED)).status == 502
        await proxy.refused("incomplete")
        # The call has ended, though the provider never answered.
        counted = await proxy.metrics()
        assert counted['cachesvc_embedding_seconds_count{provider="openai"}'] == 1


async def test_a_text_that_the_model_cannot_read_is_exact_only() -> None:
    async with rig(embed=True) as proxy:
        long = "word " * 3000
        got = await proxy.chat(long)
        assert _detail(got) == "no_entry"
        await proxy.kept(1)
        assert proxy.service.puts[0].embedding is None
        assert proxy.service.puts[0].prompt_text == long
        assert len(proxy.service.lookups) == 1


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"tools": [{"type": "function"}]}, id="tools"),
        pytest.param({"messages": [{"role": "user", "content": " \n"}]}, id="white space"),
        pytest.param({"messages": [{"role": "user", "name": "x", "content": "y"}]}, id="a name"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            id="an image",
        ),
    ],
)
async def test_what_only_equality_can_judge_is_not_embedded(fields: dict[str, Any]) -> None:
    async with rig(embed=True) as proxy:
        assert (await proxy.chat(**fields))["x-ai-cache-status"] == "MISS"
        await proxy.kept(1)
        assert (await proxy.chat(**fields))["x-ai-cache-tier"] == "exact"
        assert proxy.provider.texts == []


async def test_a_policy_without_the_semantic_tier_embeds_nothing() -> None:
    async with rig(embed=True, policy=Policy(tiers=("exact",))) as proxy:
        await proxy.chat(ASKED)
        await proxy.kept(1)
        assert (await proxy.chat(ASKED))["x-ai-cache-tier"] == "exact"
        assert proxy.provider.texts == []
        assert len(proxy.service.lookups) == 2


async def test_a_policy_without_the_exact_tier_asks_once_and_embeds_always() -> None:
    async with rig(embed=True, policy=Policy(tiers=("semantic",))) as proxy:
        await proxy.chat(ASKED)
        await proxy.kept(1)
        assert (await proxy.chat(ASKED))["x-ai-cache-tier"] == "semantic"
        assert [asked.after_exact for asked in proxy.service.lookups] == [False, False]
        assert all(asked.embedding for asked in proxy.service.lookups)


async def test_without_a_vector_a_policy_without_the_exact_tier_keeps_nothing() -> None:
    async with rig(embed=True, policy=Policy(tiers=("semantic",))) as proxy:
        proxy.provider.fault = "500"
        assert _detail(await proxy.chat(ASKED)) == "embedder_failed"
        await proxy.refused("tier_off")


async def test_equal_texts_in_flight_share_one_call() -> None:
    async with rig(embed=True) as proxy:
        proxy.provider.fault = "wait"
        calls = [asyncio.create_task(proxy.chat(ASKED, seed=n)) for n in range(10)]
        await eventually(lambda: len(proxy.service.lookups) == 10)
        await eventually(lambda: len(proxy.provider.texts) == 1)
        proxy.provider.go.set()
        assert {got.status for got in await asyncio.gather(*calls)} == {200}
        await proxy.kept(10)
        assert proxy.provider.texts == [ASKED]


@pytest.mark.parametrize("listed", ["shadow", "live"])
async def test_a_shadow_is_one_call_and_is_put_as_ever(listed: str) -> None:
    """Also where the proxy's list still says live."""
    async with rig(embed=True, policy=Policy(mode=listed)) as proxy:
        proxy.service.generation = 3
        proxy.service.reply = contract.LookupReply(
            hit=False, tier=None, reason="shadow", similarity=1.0, generation=3
        )
        got = await proxy.chat(ASKED)
        assert (got["x-ai-cache-status"], _detail(got)) == ("MISS", "shadow")
        (asked,) = proxy.service.lookups
        assert bool(asked.embedding) == (listed == "shadow")
        assert not asked.after_exact
        await proxy.kept(1)
        assert proxy.service.puts[0].embedding is not None
        assert proxy.service.puts[0].generation == 3
        assert proxy.provider.texts == [ASKED]


async def test_the_more_telling_reason_of_the_two_tiers_is_told() -> None:
    async with rig(embed=True) as proxy:
        _alike(proxy, similarity=0.5)
        await proxy.chat(ASKED)
        await proxy.kept(1)
        assert _detail(await proxy.chat(PARAPHRASE)) == "below_threshold"
        assert _detail(await proxy.chat(OTHER)) == "no_entry"


async def test_the_request_id_goes_on_to_embedder_and_service() -> None:
    async with rig(embed=True) as proxy:
        await proxy.chat(ASKED, [("x-request-id", "req-42")])
        await proxy.kept(1)
        assert set(proxy.service.request_ids) == {"req-42"}
        assert len(proxy.service.request_ids) == 3
        embedded = [seen for seen in proxy.provider.server.seen if ASKED.encode() in seen.body]
        assert embedded[0].values("x-request-id") == ["req-42"]
        assert proxy.upstream.seen[0].values("x-request-id") == ["req-42"]


async def test_an_embedder_that_keeps_failing_is_left_alone() -> None:
    async with rig(embed=True) as proxy:
        proxy.provider.fault = "500"
        for number in range(8):
            got = await proxy.chat(f"question {number}")
            assert got.status == 200
            assert _detail(got) == ("embedder_failed" if number < 5 else "circuit_open")
        assert len(proxy.provider.texts) == 5
        counted = await proxy.metrics()
        assert counted['cachesvc_circuit_open{part="embedder"}'] == 1
        assert counted['cachesvc_circuit_open{part="service"}'] == 0
        await proxy.kept(8)  # the exact tier learns all the same
        proxy.provider.fault = ""
        numbers = itertools.count(100)

        async def embeds() -> bool:
            return _detail(await proxy.chat(f"question {next(numbers)}")) == "no_entry"

        await eventually(embeds)
        assert (await proxy.metrics())['cachesvc_circuit_open{part="embedder"}'] == 0


async def test_another_system_prompt_is_another_partition() -> None:
    """Also where the request is so large that it is read in a thread."""
    async with rig(embed=True) as proxy:
        _alike(proxy)
        for number, system in enumerate(("Be terse.", "Be kind.", "x" * 200_000), 1):
            for text, tier in ((ASKED, None), (PARAPHRASE, "semantic")):
                messages = [{"role": "system", "content": system}]
                messages.append({"role": "user", "content": text})
                assert (await proxy.chat(messages=messages))["x-ai-cache-tier"] == tier
                await proxy.kept(number)
        assert len({put.partition for put in proxy.service.puts}) == 3


async def test_until_the_embedder_is_warm_it_is_not_asked() -> None:
    async with rig(embed=True) as proxy:
        proxy.provider.fault = "500"
        settings = proxy.settings
        async with started(settings) as url:
            assert (await ask(url, "GET", "/readyz")).body == b"the embedder is not warm\n"
            cold = dataclasses.replace(proxy, url=url)
            got = await cold.chat(ASKED)
            assert (got["x-ai-cache-status"], _detail(got)) == ("MISS", "embedder_failed")
            await cold.kept(1)
            assert proxy.service.puts[0].embedding is None
            assert proxy.provider.texts == []
            proxy.provider.fault = ""

            async def warm() -> bool:
                return (await ask(url, "GET", "/readyz")).status == 200

            await eventually(warm)
            assert _detail(await cold.chat(PARAPHRASE)) == "no_entry"
            assert proxy.provider.texts == [PARAPHRASE]
