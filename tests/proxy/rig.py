"""A whole proxy between a scripted upstream, a breakable service and a breakable embedder."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cachesvc.core.policy import Policy
from cachesvc.proxy.run import serve
from cachesvc.settings import Embed, Proxy, Settings
from tests.proxy.fakes import FakeProvider, FakeService
from tests.servers import PATIENCE_SECONDS, Got, RawServer, answer, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.servers import Headers, Script, Seen, Wire

PATH = "/v1/chat/completions"
STREAM = "text/event-stream"
SECRET = "a secret for tests only"
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def chat_body(text: str = "Hello", **fields: Any) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    ).encode()


def completion(text: str = "Hi", **fields: Any) -> bytes:
    """An answer whose bytes a careless cache would change."""
    message = {"role": "assistant", "content": text + "  é\u2028"}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **fields}
    whole = {"id": "c1", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}
    return json.dumps(whole, indent=1, ensure_ascii=False).encode()


def events(*texts: str, end: str = "data: [DONE]\n\n") -> bytes:
    """An event stream of chunks, one per text."""
    chunks = ({"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts)
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + end.encode()


def always(data: bytes) -> Script:
    """A script that sends these bytes to everybody."""

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(data)

    return script


def numbered() -> Script:
    """A script that never answers the same twice: a JSON completion with a running number."""
    count = 0

    async def script(seen: Seen, wire: Wire) -> None:
        nonlocal count
        count += 1
        await wire.send(answer(completion(f"answer {count}")))

    return script


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """The proxy and what stands around it."""

    url: str
    upstream: RawServer
    service: FakeService
    provider: FakeProvider
    settings: Settings
    headers: list[tuple[str, str]] = field(
        default_factory=lambda: [("authorization", "Bearer key-1")]
    )

    async def chat(self, text: str = "Hello", headers: Headers = (), **fields: Any) -> Got:
        """One chat completion as the caller `headers` say."""
        return await self.post(chat_body(text, **fields), headers)

    async def post(self, body: bytes, headers: Headers = ()) -> Got:
        return await ask(self.url, "POST", PATH, [*self.headers, *headers], body)

    async def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as they stand on the page."""
        page = (await ask(self.url, "GET", "/metrics")).body.decode()
        found = _SAMPLE.findall(page)
        return {f"{name}{{{labels}}}" if labels else name: float(v) for name, labels, v in found}

    async def not_put(self, result: str) -> float:
        """How many answers were not kept for this reason."""
        found = await self.metrics()
        return sum(
            value
            for sample, value in found.items()
            if sample.startswith("cachesvc_puts_total") and f'result="{result}"' in sample
        )

    async def kept(self, count: int) -> None:
        """Wait until the service has so many puts."""
        await eventually(lambda: len(self.service.puts) >= count)
        assert len(self.service.puts) == count

    async def refused(self, result: str, count: int = 1) -> None:
        """Wait until so many answers were not kept for this reason, and none was kept."""
        await self.counted(result, count)
        assert self.service.puts == []

    async def counted(self, result: str, count: int = 1) -> None:
        """Wait until so many answers were not kept for this reason."""

        async def enough() -> bool:
            return await self.not_put(result) >= count

        await eventually(enough)


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until it holds; what it looks at tells of no change by itself."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.002)


@asynccontextmanager
async def rig(
    script: Script | None = None,
    *,
    policy: Policy | None = None,
    policies: dict[str, Policy] | None = None,
    embed: bool | str = False,
    embed_timeout_ms: int = 20_000,
    budget_ms: int | None = 20_000,
    tables: dict[str, Embed] | None = None,
    **proxy: Any,
) -> AsyncIterator[Rig]:
    """A running proxy. Unless told otherwise the policy is live, per credential, and exact only."""
    async with AsyncExitStack() as stack:
        service, provider = FakeService(), FakeProvider()
        service.policies = policies if policies is not None else {"p": policy or Policy()}
        upstream = await stack.enter_async_context(RawServer(script or numbered()))
        await stack.enter_async_context(service.server)
        await stack.enter_async_context(provider.server)
        settings = Settings(
            proxy=Proxy(
                **{
                    "listen": "127.0.0.1:0",
                    "upstream": upstream.url,
                    "service_url": service.server.url,
                    "scope_secret": SECRET,
                    "lookup_budget_ms": budget_ms,
                    "policy_poll_seconds": 0.1,
                    **proxy,
                }
            ),
            embed=Embed(
                provider=embed if isinstance(embed, str) else "openai" if embed else "none",
                base_url=f"{provider.server.url}/v1" if embed is True else "",
                timeout_ms=embed_timeout_ms,
            ),
            embed_tables=tables or {},
        )
        url = await stack.enter_async_context(started(settings))
        yield Rig(url, upstream, service, provider, settings)


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[str]:
    """`cachesvc proxy` in this event loop; gives its URL."""
    stop, urls = asyncio.Event(), asyncio.Queue[list[str]]()
    serving = asyncio.create_task(serve(settings, ready=urls.put_nowait, stop=stop))
    waiting = asyncio.create_task(urls.get())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await serving
        yield waiting.result()[0]
    finally:
        waiting.cancel()
        stop.set()
        began = time.monotonic()
        await serving
        assert time.monotonic() - began < PATIENCE_SECONDS
