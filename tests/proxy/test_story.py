"""The whole of it: the real service on a real Postgres behind the real proxy, as one story."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachesvc.service.run import serve as serve_service
from cachesvc.settings import Embed, Proxy, Service, Settings
from tests.proxy.fakes import FakeProvider
from tests.proxy.rig import PATH, SECRET, chat_body, eventually, numbered, started
from tests.servers import Got, RawServer, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RESET, PARAPHRASE, PRICE = "How do I reset it?", "How is it reset?", "What does it cost?"
VECTORS = {
    RESET: [1.0, 0, 0, 0, 0, 0, 0, 0],
    PARAPHRASE: [0.97, 0.2431, 0, 0, 0, 0, 0, 0],
    PRICE: [0.3, 0, 0.9539, 0, 0, 0, 0, 0],
}
ALICE, BOB = [("authorization", "Bearer alice")], [("authorization", "Bearer bob")]
NO_CACHE = ("cache-control", "no-cache")


@dataclass
class Product:
    """Service, proxy and upstream; `told` holds what each reply said."""

    service: str
    proxy: str
    upstream: RawServer
    provider: FakeProvider
    told: list[str]

    async def ask(self, text: str, headers: list[tuple[str, str]], **fields: Any) -> Got:
        got = await ask(self.proxy, "POST", PATH, headers, chat_body(text, **fields))
        status, said = got["x-ai-cache-status"], got["cache-status"] or ""
        self.told.append(f"{status} {said.rpartition('detail=')[2]}")
        return got

    async def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        headers = [("content-type", "application/json")]
        got = await ask(self.service, method, path, headers, sent)
        assert got.status < 300, got
        return json.loads(got.body) if got.body else None

    async def holds(self, **counts: int) -> None:
        """Wait until the policy holds so many entries, aliases, …"""

        async def all_there() -> bool:
            (stats,) = (await self.admin("GET", "/stats"))["policies"]
            return all(stats[name] == count for name, count in counts.items())

        await eventually(all_there)


@asynccontextmanager
async def product(database_url: str, policy: dict[str, Any]) -> AsyncIterator[Product]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(RawServer(numbered()))
        provider = FakeProvider()
        await stack.enter_async_context(provider.server)
        service = Service(listen="127.0.0.1:0", database_url=database_url)
        url = await stack.enter_async_context(_service(Settings(service=service)))
        sent = json.dumps(policy).encode()
        await ask(url, "PUT", "/policies/p", [("content-type", "application/json")], sent)
        proxy = Proxy(
            listen="127.0.0.1:0",
            upstream=upstream.url,
            service_url=url,
            scope_secret=SECRET,
            lookup_budget_ms=20_000,
            policy_poll_seconds=0.1,
        )
        embed = Embed(provider="openai", base_url=f"{provider.server.url}/v1")
        settings = Settings(proxy=proxy, embed=embed)
        yield Product(
            url,
            await stack.enter_async_context(started(settings)),
            upstream,
            provider,
            [],
        )


@asynccontextmanager
async def _service(settings: Settings) -> AsyncIterator[str]:
    stop, urls = asyncio.Event(), asyncio.Queue[list[str]]()
    serving = asyncio.create_task(serve_service(settings, ready=urls.put_nowait, stop=stop))
    try:
        yield (await urls.get())[0]
    finally:
        stop.set()
        await serving


async def test_the_story_of_a_question(database_url: str) -> None:
    async with product(database_url, {"threshold": 0.9}) as run:
        run.provider.vectors |= VECTORS
        first = await run.ask(RESET, ALICE)
        await run.holds(entries=1)
        exact = await run.ask(RESET, ALICE)
        near = await run.ask(PARAPHRASE, ALICE)
        await run.holds(aliases=1)
        alias = await run.ask(PARAPHRASE, ALICE)
        await run.ask(RESET, BOB)
        await run.holds(entries=2)
        await run.ask(PRICE, ALICE)
        await run.holds(entries=3)
        await run.ask(RESET, ALICE, temperature=0.5)
        await run.holds(entries=4)
        refreshed = await run.ask(RESET, [*ALICE, NO_CACHE])
        await run.holds(entries=4, aliases=0)
        # The service has heard of its own put: an operator's call replies when all is known.
        await run.admin("POST", "/cache/purge", {"policy_id": "p", "dry_run": True})
        again = await run.ask(PARAPHRASE, ALICE)
        await run.admin("POST", "/cache/purge", {"policy_id": "p"})
        await run.ask(RESET, ALICE)

        assert run.told == [
            "MISS no_entry",
            "HIT exact",
            "HIT semantic",
            "HIT alias",
            "MISS no_entry",
            "MISS below_threshold",
            "MISS no_entry",
            "BYPASS caller_no_cache",
            "HIT semantic",
            "MISS no_entry",
        ]
        assert first.body == exact.body == near.body == alias.body
        assert again.body == refreshed.body != first.body
        assert near["x-ai-cache-similarity"] == "0.9700"
        assert alias["x-ai-cache-similarity"] is None
        assert len(run.upstream.seen) == 6
        assert run.provider.texts.count(PARAPHRASE) == 2


async def test_an_answer_asked_for_before_a_purge_is_not_kept_after_it(database_url: str) -> None:
    async with product(database_url, {}) as run:
        arrived, go = asyncio.Event(), asyncio.Event()
        answering = run.upstream.script

        async def slow(seen: Any, wire: Any) -> None:
            arrived.set()
            await go.wait()
            await answering(seen, wire)

        await run.ask(PRICE, ALICE)
        await run.holds(entries=1)
        run.upstream.script = slow
        call = asyncio.create_task(run.ask(RESET, ALICE))
        await arrived.wait()
        await run.admin("POST", "/cache/purge", {"policy_id": "p"})
        run.upstream.script = answering
        go.set()
        await call
        await run.ask(PRICE, ALICE)
        await run.holds(entries=1)  # the one that was asked for after the purge
        assert (await run.ask(RESET, ALICE))["x-ai-cache-status"] == "MISS"


async def test_a_shadow_serves_nothing_keeps_everything_and_judges_both_tiers(
    database_url: str,
) -> None:
    async with product(database_url, {"mode": "shadow"}) as run:
        run.provider.vectors[PARAPHRASE] = run.provider.vectors[RESET] = [1.0, *[0.0] * 7]
        for text in (RESET, RESET, PARAPHRASE):
            await run.ask(text, ALICE)
            await run.holds(entries=1 if text is RESET else 2)
        assert run.told == ["MISS shadow"] * 3
        page = (await ask(run.service, "GET", "/metrics")).body.decode()
        samples = [line for line in page.splitlines() if line.startswith("cachesvc_lookups_total")]
        judged = {
            f"{tier} {reason}"
            for line in samples
            for tier in ("none", "exact", "semantic")
            for reason in ("no_entry", "exact", "semantic")
            if f'tier="{tier}"' in line and f'reason="{reason}"' in line and line.endswith(" 1.0")
        }
        assert judged == {"none no_entry", "exact exact", "semantic semantic"}


async def test_a_policy_deleted_is_forgotten(database_url: str) -> None:
    async with product(database_url, {}) as run:
        await run.ask(RESET, ALICE)
        await run.holds(entries=1)
        await run.admin("DELETE", "/policies/p")

        async def forgotten() -> bool:
            return (await run.ask(RESET, ALICE))["x-ai-cache-status"] is None

        await eventually(forgotten)
