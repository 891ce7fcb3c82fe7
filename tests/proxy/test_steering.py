"""The caller steers, and the operator's rules come first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc.core.policy import BypassRule, Policy
from tests.proxy.rig import Rig, always, chat_body, completion, eventually, rig
from tests.servers import RawServer, answer, ask

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

NO_CACHE = ("cache-control", "no-cache")
NO_STORE = ("cache-control", "no-store")
ONLY = ("cache-control", "only-if-cached")
SKIP = ("x-higress-skip-ai-cache", "on")
PLAIN = Policy()
RULED = Policy(bypass_on=(BypassRule("X-Debug", "1"), BypassRule("x-other", "yes")))
COLD = Policy(max_temperature=0.5)


@dataclass(frozen=True)
class Case:
    """One request after a warm one: what is said, and what is done."""

    headers: tuple[tuple[str, str], ...]
    status: str | None
    said: str
    lookups: int
    puts: int
    policy: Policy = PLAIN
    code: int = 200
    fields: tuple[tuple[str, Any], ...] = ()


_HIT = "cachesvc; hit; ttl=30000000000; detail=exact"
CASES = {
    "nothing": Case((), "HIT", _HIT, 1, 0),
    "no-cache": Case(
        (NO_CACHE,), "BYPASS", "cachesvc; fwd=request; fwd-status=200; detail=caller_no_cache", 0, 1
    ),
    "NO-CACHE with others": Case(
        (("cache-control", "max-stale=3, No-Cache"),),
        "BYPASS",
        "cachesvc; fwd=request; fwd-status=200; detail=caller_no_cache",
        0,
        1,
    ),
    "no-cache with an argument is not the directive": Case(
        (("cache-control", 'no-cache="x"'),), "HIT", _HIT, 1, 0
    ),
    "no-cache and no-store": Case(
        (NO_CACHE, NO_STORE),
        "BYPASS",
        "cachesvc; fwd=request; fwd-status=200; detail=caller_no_cache",
        0,
        0,
    ),
    "no-store may hit": Case((NO_STORE,), "HIT", _HIT, 1, 0),
    "only-if-cached hits": Case((ONLY,), "HIT", _HIT, 1, 0),
    "skip": Case(
        (SKIP,), "BYPASS", "cachesvc; fwd=request; fwd-status=200; detail=caller_skip", 0, 0
    ),
    "skip off": Case((("x-higress-skip-ai-cache", "off"),), "HIT", _HIT, 1, 0),
    "a rule": Case(
        (("x-debug", "1"),),
        "BYPASS",
        "cachesvc; fwd=bypass; fwd-status=200; detail=bypass_rule",
        0,
        0,
        RULED,
    ),
    "another rule": Case(
        (("x-other", "yes"),),
        "BYPASS",
        "cachesvc; fwd=bypass; fwd-status=200; detail=bypass_rule",
        0,
        0,
        RULED,
    ),
    "no rule's value": Case((("x-debug", "2"),), "HIT", _HIT, 1, 0, RULED),
    "too warm": Case(
        (),
        "BYPASS",
        "cachesvc; fwd=bypass; fwd-status=200; detail=bypass_rule",
        0,
        0,
        COLD,
        fields=(("temperature", 0.6),),
    ),
    "an absent temperature is 1": Case(
        (), "BYPASS", "cachesvc; fwd=bypass; fwd-status=200; detail=bypass_rule", 0, 0, COLD
    ),
    "skip and only-if-cached": Case(
        (SKIP, ONLY), "BYPASS", "cachesvc; detail=caller_skip", 0, 0, code=504
    ),
    "no-cache and only-if-cached": Case(
        (NO_CACHE, ONLY), "BYPASS", "cachesvc; detail=caller_no_cache", 0, 0, code=504
    ),
}


@pytest.mark.parametrize("name", list(CASES))
async def test_the_table_of_steering(name: str) -> None:
    case = CASES[name]
    async with rig(policy=case.policy) as proxy:
        # Warm with a policy that bypasses nothing.
        proxy.service.policies["p"] = Policy()
        await _listed(proxy)
        await proxy.chat(**dict(case.fields))
        await proxy.kept(1)
        proxy.service.policies["p"] = case.policy
        await _listed(proxy)
        proxy.service.lookups.clear()
        calls = len(proxy.upstream.seen)

        got = await proxy.chat(headers=case.headers, **dict(case.fields))

        assert (got.status, got["x-ai-cache-status"]) == (case.code, case.status)
        assert _timeless(got["cache-status"]) == _timeless(case.said)
        assert len(proxy.service.lookups) == case.lookups
        forwarded = 0 if case.status == "HIT" or case.code == 504 else 1
        assert len(proxy.upstream.seen) - calls == forwarded
        await proxy.kept(1 + case.puts)
        assert await proxy.not_put("caller_no_store") == (name == "no-cache and no-store")


async def _listed(proxy: Rig) -> None:
    """Wait for a list that was asked for after now."""
    before = proxy.service.list_calls
    await eventually(lambda: proxy.service.list_calls >= before + 2)


def _timeless(said: str | None) -> str:
    assert said is not None
    return "; ".join(part for part in said.split("; ") if not part.startswith("ttl="))


async def test_a_miss_with_no_store_keeps_nothing() -> None:
    async with rig(embed=True) as proxy:
        for number in (1, 2):
            got = await proxy.chat(headers=[NO_STORE])
            assert got["x-ai-cache-status"] == "MISS"
            await proxy.refused("caller_no_store", number)


async def test_no_cache_refreshes_both_tiers() -> None:
    async with rig(embed=True) as proxy:
        await proxy.chat("How do I reset it?")
        await proxy.kept(1)
        refreshed = await proxy.chat("How do I reset it?", [NO_CACHE])
        await proxy.kept(2)
        old, new = proxy.service.puts
        assert new.body == refreshed.body != old.body
        assert (new.exact_key, new.partition) == (old.exact_key, old.partition)
        assert new.embedding == old.embedding is not None
        assert (await proxy.chat("How do I reset it?")).body == refreshed.body


async def test_when_a_refresh_fails_the_old_entry_stays() -> None:
    statuses = iter(["200 OK", "500 Oops"])

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(completion("old"), status=next(statuses)))

    async with rig(script) as proxy:
        await proxy.chat()
        await proxy.kept(1)
        assert (await proxy.chat(headers=[NO_CACHE])).status == 500
        hit = await proxy.chat()
        assert (hit["x-ai-cache-status"], hit.body) == ("HIT", completion("old"))
        assert len(proxy.service.puts) == 1


async def test_max_age_goes_with_both_lookups_and_s_maxage_with_the_put() -> None:
    async with rig(embed=True) as proxy:
        await proxy.chat(headers=[("cache-control", "max-age=30, s-maxage=600")])
        await proxy.kept(1)
        assert [asked.max_age_seconds for asked in proxy.service.lookups] == [30, 30]
        assert proxy.service.puts[0].ttl_seconds == 600


async def test_an_s_maxage_of_zero_keeps_nothing() -> None:
    async with rig() as proxy:
        await proxy.chat(headers=[("cache-control", "s-maxage=0")])
        await proxy.refused("caller_no_store")


@pytest.mark.parametrize("fault", ["", "500", "close"])
async def test_only_if_cached_without_an_answer_is_504_in_the_protocols_shape(fault: str) -> None:
    async with rig() as proxy:
        proxy.service.fault = fault
        got = await proxy.chat(headers=[ONLY])
        assert got.status == 504
        assert set(json.loads(got.body)["error"]) == {"message", "type", "param", "code"}
        assert got["x-ai-cache-status"] == "MISS"
        detail = "cache_unavailable" if fault else "no_entry"
        assert got["cache-status"] == f"cachesvc; detail={detail}"
        assert proxy.upstream.seen == []


async def test_steering_headers_go_on_to_the_upstream() -> None:
    async with rig() as proxy:
        await proxy.chat(headers=[NO_STORE, ("x-higress-skip-ai-cache", "off")])
        seen = proxy.upstream.seen[0]
        assert seen.values("cache-control") == ["no-store"]
        assert seen.values("x-higress-skip-ai-cache") == ["off"]


async def _refused(proxy: Rig, text: str = "Hello") -> None:
    got = await proxy.chat(text, headers=[ONLY])
    assert got.status == 504
    assert set(json.loads(got.body)["error"]) == {"message", "type", "param", "code"}
    assert proxy.upstream.seen == []


async def test_only_if_cached_is_504_where_the_request_could_not_be_judged_in_time() -> None:
    async with rig(budget_ms=1) as proxy:
        await _refused(proxy, "x" * 4_000_000)


async def test_only_if_cached_is_504_where_no_policies_were_ever_read() -> None:
    nobody = RawServer(always(b""))
    async with nobody:
        pass
    async with rig(service_url=nobody.url) as proxy:
        await _refused(proxy)


async def test_only_if_cached_is_504_for_what_is_too_large_to_be_judged() -> None:
    async with rig(max_request_bytes=1024) as proxy:
        await _refused(proxy, "x" * 5000)


@pytest.mark.parametrize(
    ("policies", "body"),
    [
        pytest.param({"p": Policy()}, b"not json", id="unreadable"),
        pytest.param({}, chat_body(), id="no policy"),
        pytest.param({"p": Policy(enabled=False)}, chat_body(), id="disabled"),
        pytest.param({"p": Policy(applies_to="model:n")}, chat_body(), id="another model's"),
    ],
)
async def test_only_if_cached_says_nothing_to_what_is_not_ours(
    policies: dict[str, Policy], body: bytes
) -> None:
    async with rig(policies=policies) as proxy:
        assert (await proxy.post(body, [ONLY])).status == 200
        assert len(proxy.upstream.seen) == 1


async def test_only_if_cached_says_nothing_to_other_paths() -> None:
    async with rig(always(answer(b"{}"))) as proxy:
        assert (await ask(proxy.url, "POST", "/v1/files", [ONLY], b"{}")).status == 200
