"""The doctor asks every embedder and looks at every policy, and changes nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cachesvc.commands.doctor import examine
from cachesvc.commands.finding import FAIL, OK, WARN, Finding
from cachesvc.core.policy import Policy
from cachesvc.settings import Embed, Proxy, Settings
from tests.proxy.fakes import FakeProvider, FakeService

if TYPE_CHECKING:
    from pathlib import Path


def _remote(provider: FakeProvider) -> Embed:
    return Embed(provider="openai", base_url=f"{provider.server.url}/v1", api_key="sk-secret")


async def found(settings: Settings) -> dict[str, Finding]:
    findings = await asyncio.to_thread(lambda: list(examine(settings)))
    return {finding.what: finding for finding in findings}


async def test_every_table_and_every_policy_is_looked_at(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        fine, broken, service = FakeProvider(), FakeProvider(), FakeService()
        for server in (fine.server, broken.server, service.server):
            await stack.enter_async_context(server)
        broken.fault = "500"
        service.policies = {"a": Policy(embed="fine"), "b": Policy(embed="gone"), "c": Policy()}
        settings = Settings(
            data_dir=str(tmp_path),
            proxy=Proxy(service_url=service.server.url),
            embed=Embed(provider="none"),
            embed_tables={
                "fine": _remote(fine),
                "broken": _remote(broken),
            },
        )
        report = await found(settings)
        assert report["embedder"].state == OK
        assert report["embedder fine"].state == OK
        assert "dimensions" in report["embedder fine"].found
        assert fine.texts == ["a"]
        assert report["embedder broken"].state == FAIL
        assert "500" in report["embedder broken"].found
        assert "[embed.broken]" in report["embedder broken"].advice
        assert report["policies"].state == WARN
        assert report["policies"].found == "b names [embed.gone]"
        assert "sk-secret" not in repr(report)
        del service.policies["b"]
        assert (await found(settings))["policies"][1:3] == (OK, "2, each with its embedder")


async def test_without_a_service_the_policies_are_a_warning(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=str(tmp_path),
        proxy=Proxy(service_url="http://127.0.0.1:9"),
        embed=Embed(provider="none"),
    )
    assert (await found(settings))["policies"].state == WARN
