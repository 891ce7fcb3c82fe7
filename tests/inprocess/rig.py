"""A `CachingTransport` between a client in this process and a scripted upstream."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachesvc import CachingTransport
from cachesvc.core.policy import Policy
from tests.proxy.fakes import FakeService
from tests.proxy.rig import SECRET, numbered
from tests.servers import RawServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.servers import Script


@dataclass
class Inside:
    """The upstream, the service, and how to make a transport in front of both."""

    upstream: RawServer
    service: FakeService
    make: Callable[..., CachingTransport]

    @property
    def url(self) -> str:
        return f"{self.upstream.url}/v1/chat/completions"


@asynccontextmanager
async def inside(
    folder: Path, script: Script | None = None, *, policy: Policy | None = None
) -> AsyncIterator[Inside]:
    made: list[CachingTransport] = []
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(RawServer(script or numbered()))
        service = FakeService()
        service.policies = {"p": policy or Policy()}
        await stack.enter_async_context(service.server)

        def make(inner: Any = None, **settings: Any) -> CachingTransport:
            told = {
                "data_dir": str(folder),
                "embed.provider": "none",
                "proxy.upstream": upstream.url,
                "proxy.lookup_budget_ms": 5000,
                "proxy.policy_poll_seconds": 0.1,
                **settings,
            }
            made.append(
                CachingTransport(
                    inner, service_url=service.server.url, scope_secret=SECRET, settings=told
                )
            )
            return made[-1]

        try:
            yield Inside(upstream, service, make)
        finally:
            for transport in made:
                await transport.aclose()
                await asyncio.to_thread(transport.close)
