"""The whole product on loopback: Postgres, service, proxy, an upstream and an embedding provider.

async with stack(database_url) as run:
    await run.expect("MISS", "How do I reset it?")
    await run.expect("HIT exact", "How do I reset it?")
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cachesvc.service.run import serve as serve_service
from cachesvc.settings import Embed, Proxy, Service, Settings
from tests.proxy.fakes import DIMENSIONS, FakeProvider
from tests.proxy.rig import PATH, SECRET, STREAM, completion, events, eventually, started
from tests.servers import Got, RawServer, answer, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Headers, Script, Seen, Wire

JSON = ("content-type", "application/json")
RESET, PARAPHRASE = "How do I reset it?", "How is it reset?"
_PROBE = "does-the-proxy-follow"


def vector(cosine: float, axis: int = 1) -> list[float]:
    """A unit vector whose cosine with the first axis is this; `axis` is where it leans to."""
    found = [0.0] * DIMENSIONS
    found[0] = cosine
    found[axis] = (1 - cosine * cosine) ** 0.5
    return found


def user(content: Any) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": content}


def system(text: str, question: str) -> list[dict[str, Any]]:
    """A system prompt and a question."""
    return [{"role": "system", "content": text}, user(question)]


def near(run: Stack, cosine: float = 0.97) -> None:
    """Let RESET and PARAPHRASE mean so nearly the same."""
    run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(cosine)}


def counting() -> Script:
    """Answers as it is asked, JSON or stream, and never the same twice."""
    count = 0

    async def script(seen: Seen, wire: Wire) -> None:
        nonlocal count
        count += 1
        if b'"stream": true' in seen.body:
            await wire.send(answer(events(f"{count}", "."), media_type=STREAM, framing="chunked"))
        else:
            await wire.send(answer(completion(f"answer {count}")))

    return script


@dataclass
class Stack:
    """What runs; `entries` is how many the service is known to hold."""

    service: str
    proxy: str
    upstream: RawServer
    provider: FakeProvider
    entries: int = 0
    _probes: int = field(default=0, repr=False)

    async def chat(
        self,
        text: str = "Hello",
        *,
        key: str | None = "alice",
        headers: Headers = (),
        url: str = "",
        **fields: Any,
    ) -> Got:
        """One chat completion of the caller with this API key."""
        fields.setdefault("messages", [{"role": "user", "content": text}])
        return await self.post(PATH, {"model": "m", **fields}, key=key, headers=headers, url=url)

    async def post(
        self,
        path: str,
        body: dict[str, Any] | bytes,
        *,
        key: str | None = "alice",
        headers: Headers = (),
        url: str = "",
    ) -> Got:
        told = [*([("authorization", f"Bearer {key}")] if key else []), *headers]
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await ask(url or self.proxy, "POST", path, told, sent)

    async def expect(
        self, status: str | None, text: str = "Hello", *, kept: bool | None = None, **call: Any
    ) -> Got:
        """One chat completion that must end so; a miss is kept before this returns."""
        got = await self.chat(text, **call)
        assert said(got) == status, (text, said(got), got["cache-status"])
        if kept if kept is not None else status == "MISS":
            await self.holds(self.entries + 1)
        return got

    async def holds(self, entries: int) -> None:
        """Wait until the service holds so many entries."""

        async def all_there() -> bool:
            policies = (await self.admin("GET", "/stats"))["policies"]
            return sum(int(policy["entries"]) for policy in policies) == entries

        await eventually(all_there)
        self.entries = entries

    async def refused(self, count: int) -> None:
        """Wait until the proxy has turned away so many answers, then see that none was kept."""

        async def enough() -> bool:
            puts = await self.metric("cachesvc_puts_total")
            return puts - await self.metric("cachesvc_puts_total", result="stored") >= count

        await eventually(enough)
        await self.holds(self.entries)

    async def policy(self, name: str = "p", **fields: Any) -> None:
        """Put a policy, and wait until the proxy follows it."""
        self._probes += 1
        probe = f"{_PROBE}-{self._probes}"
        for put, document in (
            (name, fields),
            ("probe", {"applies_to": f"model:{probe}", "priority": 1000, "header_names": "aisix"}),
        ):
            got = await self.call("PUT", f"/policies/{put}", document)
            assert got.status < 300, got.body

        async def followed() -> bool:
            # A list is read as a whole, and the probe was put last.
            skip = [("x-higress-skip-ai-cache", "on")]
            return (await self.chat(model=probe, headers=skip))["x-aisix-cache"] == "bypass"

        await eventually(followed)
        self.upstream.seen[:] = [seen for seen in self.upstream.seen if not _is_probe(seen)]

    async def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        got = await self.call(method, path, body)
        assert got.status < 300, got
        return json.loads(got.body) if got.body else None

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Got:
        """A call to the service, whatever it answers."""
        sent = None if body is None else json.dumps(body).encode()
        return await ask(self.service, method, path, [JSON], sent)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels, over both parts."""
        total = 0.0
        for url in (self.service, self.proxy):
            page = (await ask(url, "GET", "/metrics")).body.decode()
            for line in page.splitlines():
                if line.split("{")[0].split(" ")[0] != name:
                    continue
                if all(f'{label}="{value}"' in line for label, value in labels.items()):
                    total += float(line.rpartition(" ")[2])
        return total


def _is_probe(seen: Seen) -> bool:
    return _PROBE.encode() in seen.body


def said(got: Got) -> str | None:
    """ "HIT exact", "HIT semantic", "MISS", "BYPASS", or None without a header."""
    status, tier = got["x-ai-cache-status"], got["x-ai-cache-tier"]
    return f"{status} {tier}" if status == "HIT" else status


@asynccontextmanager
async def stack(
    database_url: str,
    policy: dict[str, Any] | None = None,
    script: Script | None = None,
    *,
    embed: bool = True,
    service_suffix: str = "",
    **proxy: Any,
) -> AsyncIterator[Stack]:
    """Everything, with the policy `p`; `proxy` are settings of the proxy."""
    async with AsyncExitStack() as parts:
        upstream = await parts.enter_async_context(RawServer(script or counting()))
        provider = FakeProvider()
        await parts.enter_async_context(provider.server)
        url = await parts.enter_async_context(running_service(database_url))
        run = Stack(url, "", upstream, provider)
        if policy is not None:
            await run.admin("PUT", "/policies/p", policy)
        settings = proxy_settings(run, embed=embed, service_suffix=service_suffix, **proxy)
        run.proxy = await parts.enter_async_context(started(settings))
        yield run


def proxy_settings(
    run: Stack, *, embed: bool = True, service_suffix: str = "", **proxy: Any
) -> Settings:
    """The settings of a proxy before this stack's service."""
    told = {
        "listen": "127.0.0.1:0",
        "upstream": run.upstream.url,
        "service_url": run.service + service_suffix,
        "scope_secret": SECRET,
        "lookup_budget_ms": 20_000,
        "policy_poll_seconds": 0.1,
        **proxy,
    }
    provider = Embed(provider="openai", base_url=f"{run.provider.server.url}/v1")
    return Settings(proxy=Proxy(**told), embed=provider if embed else Embed(provider="none"))


@asynccontextmanager
async def running_service(database_url: str) -> AsyncIterator[str]:
    """The service in this event loop; gives its URL."""
    stop, urls = asyncio.Event(), asyncio.Queue[list[str]]()
    settings = Settings(service=Service(listen="127.0.0.1:0", database_url=database_url))
    serving = asyncio.create_task(serve_service(settings, ready=urls.put_nowait, stop=stop))
    try:
        yield (await urls.get())[0]
    finally:
        stop.set()
        await serving
