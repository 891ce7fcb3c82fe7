"""Cases 86 to 95: switches, refusals, counters."""

from __future__ import annotations

from typing import Any

import pytest

from cachesvc.settings import Embed, Settings
from tests.behaviours.stack import proxy_settings, said, stack, vector
from tests.proxy.rig import always, eventually, started
from tests.servers import RawServer, answer

RESET, PARAPHRASE = "How do I reset it?", "How is it reset?"


@pytest.mark.case(86)
async def test_headers_may_be_switched_off(database_url: str) -> None:
    async with stack(database_url, {"headers": False}) as run:
        first = await run.expect(None, kept=True)
        hit = await run.expect(None)
        assert hit.body == first.body
        names = {name.lower() for name, _ in hit.headers}
        assert not [name for name in names if "cache" in name or name == "age"]


@pytest.mark.case(87)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", 1.1),
        ("threshold", -0.1),
        ("threshold_floor", 0.99),
        ("ttl_seconds", 0),
        ("semantic_ttl_seconds", 0),
        ("window", 0),
        ("top_k", 0),
        ("top_k", 33),
        ("tiers", []),
        ("tiers", ["l3"]),
        ("max_entries", 0),
        ("mode", "on"),
        ("extract", "messages[0]"),
        ("embed", "No Such Name"),
    ],
)
async def test_a_value_out_of_range_is_refused_by_name(
    database_url: str, field: str, value: Any
) -> None:
    async with stack(database_url) as run:
        got = await run.call("PUT", "/policies/p", {field: value})
        assert (got.status, f"policy.{field}".encode() in got.body) == (422, True), got.body


@pytest.mark.case(87)
async def test_either_tier_may_stand_alone(database_url: str) -> None:
    async with stack(database_url, {"tiers": ["semantic"]}) as run:
        run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(0.99)}
        await run.expect("MISS", RESET)
        await run.expect("HIT semantic", RESET)
        await run.expect("HIT semantic", PARAPHRASE)


@pytest.mark.case(88)
async def test_semantic_settings_without_the_tier_are_kept_and_do_nothing(
    database_url: str,
) -> None:
    policy = {"tiers": ["exact"], "threshold": 0.5, "top_k": 9, "semantic_ttl_seconds": 9}
    async with stack(database_url, policy) as run:
        run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(0.99)}
        await run.expect("MISS", RESET)
        await run.expect("MISS", PARAPHRASE)
        assert run.provider.texts == []
        assert (await run.admin("GET", "/policies/p"))["top_k"] == 9


@pytest.mark.case(89)
@pytest.mark.case(90)
async def test_every_outcome_is_counted_once_under_its_labels(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(0.99)}
        await run.expect("MISS", RESET)
        embedded = await run.metric("cachesvc_embedding_seconds_count")
        await run.expect("HIT exact", RESET)
        assert await run.metric("cachesvc_embedding_seconds_count") == embedded
        await run.expect("HIT semantic", PARAPHRASE)
        await run.expect("BYPASS", headers=[("x-higress-skip-ai-cache", "on")])
        wanted = {
            ("miss", ""): 1.0,
            ("hit", "exact"): 1.0,
            ("hit", "semantic"): 1.0,
            ("bypass", ""): 1.0,
        }

        async def counted() -> bool:
            found = {
                (outcome, tier): await run.metric(
                    "cachesvc_lookups_total", policy="p", outcome=outcome, tier=tier
                )
                for outcome, tier in wanted
            }
            # A miss that both tiers judged is told with the tier that was asked last.
            found["miss", ""] = await run.metric("cachesvc_lookups_total", outcome="miss")
            return found == wanted

        await eventually(counted)
        assert await run.metric("cachesvc_lookups_total") == 4


@pytest.mark.case(91)
async def test_an_unknown_policy_field_is_refused_and_an_old_policy_gets_defaults(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run:
        got = await run.call("PUT", "/policies/q", {"thresold": 0.5})
        assert (got.status, b"thresold" in got.body) == (422, True)
        policy = await run.admin("GET", "/policies/p")
        assert (policy["threshold"], policy["ttl_seconds"]) == (0.92, 3600)


@pytest.mark.case(92)
async def test_azure_gets_the_api_key_header_and_never_authorization(database_url: str) -> None:
    vectors = b'{"data": [{"embedding": [1, 0, 0, 0]}]}'
    async with stack(database_url, {}) as run, RawServer(always(answer(vectors))) as azure:
        table = Embed(provider="azure_openai", base_url=azure.url, model="ada", api_key="s3cret")
        settings = Settings(proxy=proxy_settings(run).proxy, embed=table)
        async with started(settings) as url:
            await run.expect("MISS", RESET, url=url)
        assert azure.seen
        for seen in azure.seen:
            assert seen.values("api-key") == ["s3cret"]
            assert seen.values("authorization") == []


@pytest.mark.case(93)
@pytest.mark.case(94)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b"not json"),
        ("/v1/chat/completions", b""),
        ("/v1/chat/completions", b'{"messages": []}'),
        ("/v1/chat/completions", b'{"model": "m", "model": "n", "messages": []}'),
        ("/v1/chat/completions", b"\xff\xfe"),
        ("/v1/messages", b'{"messages": "x"}'),
        ("/v1/files", b"--x\r\ncontent-disposition: form-data\r\n\r\n\x00\xff\r\n--x--"),
        ("/anything", b"{}"),
    ],
)
async def test_what_is_not_ours_passes_through_untouched(
    database_url: str, path: str, body: bytes
) -> None:
    async with stack(database_url, {}, always(answer(b"as it was", media_type="text/x"))) as run:
        got = await run.post(path, body, headers=[("content-type", "application/x-odd")])
        assert (got.status, got.body, said(got)) == (200, b"as it was", None)
        assert run.upstream.seen[0].body == body
        assert run.upstream.seen[0].values("content-type") == ["application/x-odd"]
