"""What the proxy counts: what the service never saw, and what failing open cost."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from cachesvc.core.policy import BypassRule, Policy
from tests.proxy.rig import completion, rig
from tests.servers import answer, ask

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

_RULED = Policy(bypass_on=(BypassRule("x-debug", "1"),))


def _lookups(counted: dict[str, float]) -> dict[str, float]:
    samples = {name: v for name, v in counted.items() if name.startswith("cachesvc_lookups_total")}
    return {
        " ".join(re.findall(r'"(\w*)"', name)[i] for i in (0, 2)): value
        for name, value in samples.items()
    }


async def test_only_what_the_service_did_not_decide_is_counted_as_a_lookup() -> None:
    async with rig(policy=_RULED) as proxy:
        await proxy.chat()
        await proxy.kept(1)
        await proxy.chat()
        await proxy.chat(headers=[("cache-control", "no-cache")])
        await proxy.chat(headers=[("x-higress-skip-ai-cache", "on")])
        await proxy.chat(headers=[("x-debug", "1")])
        await proxy.post(b"not json")
        proxy.service.fault = "500"
        await proxy.chat()
        assert _lookups(await proxy.metrics()) == {
            "bypass caller_no_cache": 1,
            "bypass caller_skip": 1,
            "bypass bypass_rule": 1,
            "bypass unreadable": 1,
            "miss cache_unavailable": 1,
        }


async def test_what_is_neither_read_nor_written_counts_as_no_put() -> None:
    async with rig(policy=_RULED) as proxy:
        await proxy.chat(headers=[("x-higress-skip-ai-cache", "on")])
        await proxy.chat(headers=[("x-debug", "1")])
        await proxy.upstream.stop()
        await proxy.chat(headers=[("x-debug", "1")])
        assert not [name for name in await proxy.metrics() if "puts_total" in name]


async def test_unproven_credentials_are_counted() -> None:
    async with rig(policy=Policy(sharing="shared")) as proxy:
        await proxy.chat()
        assert _lookups(await proxy.metrics()) == {"miss credential_unproven": 1}


async def test_added_latency_is_what_the_cache_took_and_not_what_the_upstream_took() -> None:
    async def slow(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(0.3)
        await wire.send(answer(completion()))

    async with rig(slow) as proxy:
        await proxy.chat()
        counted = await proxy.metrics()
        assert counted["cachesvc_added_latency_seconds_count"] == 1
        assert 0 < counted["cachesvc_added_latency_seconds_sum"] < 0.3
        await ask(proxy.url, "GET", "/v1/models")
        assert (await proxy.metrics())["cachesvc_added_latency_seconds_count"] == 1


async def test_every_cause_of_failing_open_is_there_from_the_start() -> None:
    async with rig() as proxy:
        counted = await proxy.metrics()
        causes = {k.split('"')[1]: v for k, v in counted.items() if "fail_open_total" in k}
        assert causes == {
            "bug": 0,
            "cache_unavailable": 0,
            "circuit_open": 0,
            "embedder_failed": 0,
            "lookup_timeout": 0,
        }
        page = await ask(proxy.url, "GET", "/metrics")
        assert (page["content-type"] or "").startswith("text/plain; version=")


async def test_embedding_time_and_failures_have_the_provider() -> None:
    async with rig(embed=True) as proxy:
        await proxy.chat("one")
        proxy.provider.fault = "500"
        await proxy.chat("two")
        counted = await proxy.metrics()
        assert counted['cachesvc_embedding_seconds_count{provider="openai"}'] == 2
        failures = {k: v for k, v in counted.items() if "embedding_failures_total" in k}
        assert failures == {
            'cachesvc_embedding_failures_total{cause="EmbedError",provider="openai"}': 1
        }


async def test_nothing_secret_stands_on_the_page() -> None:
    async with rig(embed=True) as proxy:
        await proxy.chat("a private question", [("x-request-id", "req-private")])
        await proxy.kept(1)
        page = (await ask(proxy.url, "GET", "/metrics")).body
        for secret in (b"private", b"key-1", b"secret"):
            assert secret not in page
