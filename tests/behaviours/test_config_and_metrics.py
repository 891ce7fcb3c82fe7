"""Cases 86 to 95: switches, refusals, counters."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from cachesvc.settings import Embed, Settings
from tests.behaviours.stack import PARAPHRASE, RESET, near, proxy_settings, said, stack
from tests.end_to_end.stack import COMMAND, clean_environment
from tests.proxy.rig import always, eventually, started
from tests.servers import RawServer, answer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.case(86)
async def test_headers_may_be_switched_off(database_url: str) -> None:
    async with stack(database_url, {"headers": False}) as run:
        first = await run.expect(None, kept=True)
        hit = await run.expect(None)
        assert hit.body == first.body
        names = {name.lower() for name, _ in hit.headers}
        assert not [name for name in names if "cache" in name or name == "age"]


@pytest.mark.case(22)
@pytest.mark.case(86)
async def test_the_headers_may_be_named_as_aisix_names_them(database_url: str) -> None:
    async with stack(database_url, {"header_names": "aisix"}) as run:
        near(run)
        told: list[tuple[str | None, ...]] = []
        skip = [("x-higress-skip-ai-cache", "on")]
        for text in (RESET, RESET, PARAPHRASE, "skipped"):
            headers = skip if text == "skipped" else []
            got = await run.expect(None, text, headers=headers, kept=not told)
            names = ("x-aisix-cache", "x-aisix-cache-layer", "x-aisix-cache-similarity")
            told.append(tuple(got[name] for name in names))
        *plain, (status, layer, similarity), bypass = told
        assert plain == [("miss", None, None), ("hit", "exact", None)]
        assert (status, layer) == ("hit", "semantic")
        assert re.fullmatch(r"0\.[0-9]{4}", similarity or "")
        assert bypass == ("bypass", None, None)


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
        near(run)
        await run.expect("MISS", RESET)
        await run.expect("HIT semantic", RESET)
        await run.expect("HIT semantic", PARAPHRASE)


@pytest.mark.case(88)
async def test_semantic_settings_without_the_tier_are_kept_and_do_nothing(
    database_url: str,
) -> None:
    policy = {"tiers": ["exact"], "threshold": 0.5, "top_k": 9, "semantic_ttl_seconds": 9}
    async with stack(database_url, policy) as run:
        near(run)
        await run.expect("MISS", RESET)
        await run.expect("MISS", PARAPHRASE)
        assert run.provider.texts == []
        assert (await run.admin("GET", "/policies/p"))["top_k"] == 9


@pytest.mark.case(89)
@pytest.mark.case(90)
async def test_every_outcome_is_counted_once_under_its_labels(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        await run.expect("MISS", RESET)
        embedded = await run.metric("cachesvc_embedding_seconds_count")
        await run.expect("HIT exact", RESET)
        assert await run.metric("cachesvc_embedding_seconds_count") == embedded
        await run.expect("HIT semantic", PARAPHRASE)
        await run.expect("BYPASS", headers=[("x-higress-skip-ai-cache", "on")])

        async def counted(**labels: str) -> float:
            return await run.metric("cachesvc_lookups_total", policy="p", **labels)

        async def all_counted() -> bool:
            return await counted() == 4

        await eventually(all_counted)
        for outcome in ("miss", "bypass"):
            assert await counted(outcome=outcome) == 1
        for tier in ("exact", "semantic"):
            assert await counted(outcome="hit", tier=tier) == 1
        await run.expect("HIT exact", RESET)
        assert (await counted(outcome="hit", tier="exact"), await counted()) == (2, 5)


@pytest.mark.case(91)
async def test_an_unknown_policy_field_is_refused_and_an_old_policy_gets_defaults(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run:
        got = await run.call("PUT", "/policies/q", {"thresold": 0.5})
        assert (got.status, b"thresold" in got.body) == (422, True)
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute("UPDATE policies SET document = '{\"threshold\": 0.5}'")
        finally:
            await connection.close()

        async def read_again() -> bool:
            policy = await run.admin("GET", "/policies/p")
            told = [policy[name] for name in ("threshold", "ttl_seconds", "tiers", "sharing")]
            return told == [0.5, 3600, ["exact", "semantic"], "credential"]

        await eventually(read_again)


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


@pytest.mark.case(87)
@pytest.mark.case(93)
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("EMBED_PROVIDER", "both", "embed.provider: is 'both'; must be local, openai"),
        ("EMBED_PROVIDER", "azure_openai", "embed.base_url: is required"),
        ("EMBED_BASE_URL", "http://x", "embed.provider: is 'local', which takes no base_url"),
        ("PROXY_UPSTREAM", "https://api.openai.com/v1", "write 'https://api.openai.com'"),
        ("PROXY_LOOKUP_BUDGET_MS", "-1", "proxy.lookup_budget_ms: is -1; must be 1 to"),
        ("PROXY_LISTEN", "nowhere", "proxy.listen: is 'nowhere'; must be HOST:PORT"),
        ("PROXY_CREDENTIAL_PROOF_SECONDS", "soon", "PROOF_SECONDS: is 'soon'"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, name: str, value: str, told: str
) -> None:
    secret = "s3cret-s3cret-s3cret"
    wrong = {f"CACHESVC_{name}": value, "CACHESVC_PROXY_SCOPE_SECRET": secret}
    done = subprocess.run(
        [COMMAND, "proxy", "--data-dir", str(tmp_path)],
        env=clean_environment(**wrong),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert told in line
    assert secret not in line


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
