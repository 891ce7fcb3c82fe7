"""`cachesvc proxy`: put the parts together, wait until they are warm, answer, close everything."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cachesvc.config_checks import split_listen
from cachesvc.dialects.table import DIALECTS
from cachesvc.edge.limits import Limits
from cachesvc.edge.server import Listener, install_stop_signals
from cachesvc.edge.server import run as run_server
from cachesvc.embed.factory import create
from cachesvc.errors import ConfigError, EmbedError
from cachesvc.proxy.apart import Apart
from cachesvc.proxy.app import ProxyApp
from cachesvc.proxy.cache import Cache
from cachesvc.proxy.client import ServiceClient
from cachesvc.proxy.embedding import Embeddings
from cachesvc.proxy.flights import Flights
from cachesvc.proxy.headers import CacheHeaders
from cachesvc.proxy.judge import Judge
from cachesvc.proxy.lookup import Lookups
from cachesvc.proxy.policies import PolicyBook, Poller
from cachesvc.proxy.proofs import Proofs
from cachesvc.proxy.puts import Puts
from cachesvc.proxy.relay import Relay
from cachesvc.proxy.seam import Circuit, Guard
from cachesvc.proxy.telemetry import Telemetry
from cachesvc.proxy.transport import Transport
from cachesvc.proxy.tunnel import Tunnels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

    from cachesvc.embed.base import Embedder
    from cachesvc.settings import Settings

log = logging.getLogger("cachesvc.proxy")

_WARM_WITHIN_SECONDS = 5.0
_WARM_AGAIN_SECONDS = 2.0
_GRACE_SECONDS = 2.5
# Above what upstreams take (nginx 32 KiB, Envoy 60 KiB): it is theirs to refuse.
_LIMITS = Limits(max_headers=256, max_head_bytes=64 * 1024, body_seconds=None)
_DRAIN_SECONDS = 2.0


@dataclass
class Warmth:
    """The embedder, and whether it has shown that it works."""

    embedder: Embedder | None
    ready: asyncio.Event

    async def run(self) -> None:
        """Warm the embedder, again and again until it is."""
        told = False
        while self.embedder is not None:
            try:
                await self.embedder.warm()
                break
            except EmbedError as exc:
                if not told:
                    log.warning("the embedder does not work (%s): exact matches only", exc)
                told = True
                await asyncio.sleep(_WARM_AGAIN_SECONDS)
        self.ready.set()
        if told:
            log.warning("the embedder works")


@dataclass
class Proxy:
    """The proxy in parts: its application, and what it waits for before it accepts."""

    app: ProxyApp
    book: PolicyBook
    warmth: Warmth

    def missing(self) -> list[str]:
        """What is not ready, in words; nothing when all is."""
        found = [] if self.book.loaded.is_set() else ["policies are not loaded"]
        return found if self.warmth.ready.is_set() else [*found, "the embedder is not warm"]

    async def settle(self, seconds: float) -> None:
        """Wait for policies and embedder, so long at most."""
        waits = [
            asyncio.create_task(event.wait()) for event in (self.book.loaded, self.warmth.ready)
        ]
        await asyncio.wait(waits, timeout=seconds)
        for wait in waits:
            wait.cancel()
        for what in self.missing():
            log.warning("%s; requests go to the upstream without the cache until then", what)


async def serve(
    settings: Settings,
    *,
    ready: Callable[[list[str]], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set, or SIGINT or SIGTERM come where no `stop` is given.

    `ready` gets the URL. Raises ConfigError and StartError.
    """
    if stop is None:
        stop = asyncio.Event()
        install_stop_signals(asyncio.get_running_loop(), stop)
    if not settings.proxy.scope_secret:
        raise ConfigError(
            "proxy.scope_secret: is required (or scope_secret_file): at least 16 characters,"
            " the same in every proxy that shares a cache"
        )
    # In a thread: it blocks while the model is loaded, or built for the first time.
    make = partial(create, settings.embed, settings.data_path, log.info)
    embedder = await asyncio.to_thread(make)
    async with running(settings, embedder) as proxy:
        await proxy.settle(_WARM_WITHIN_SECONDS)
        host, port = split_listen("proxy.listen", settings.proxy.listen)
        listener = Listener(proxy.app, host, port, "proxy.listen", refusal=_refusal, handovers=True)
        await run_server(
            [listener], stop=stop, ready=ready, grace_seconds=_GRACE_SECONDS, limits=_LIMITS
        )


def _refusal(status: int, message: str) -> bytes:
    code = {400: "bad_request", 408: "request_timeout", 503: "overloaded"}.get(
        status, "headers_too_large"
    )
    return DIALECTS[0].error(status, code, message)


@asynccontextmanager
async def running(settings: Settings, embedder: Embedder | None) -> AsyncIterator[Proxy]:
    """The proxy's application and its background work; leaving closes everything.

    Takes `embedder` over. Raises ConfigError.
    """
    async with AsyncExitStack() as stack:
        if embedder is not None:
            stack.push_async_callback(embedder.close)
        service = _service(settings)
        stack.push_async_callback(service.close)
        relay = _relay(settings)
        stack.push_async_callback(relay.close)
        book, telemetry = PolicyBook(), Telemetry()
        service_circuit, embedder_circuit = Circuit(), Circuit()
        telemetry.watch_circuit("service", lambda: service_circuit.open)
        telemetry.watch_circuit("embedder", lambda: embedder_circuit.open)
        guard, warmth = Guard(telemetry.bug), Warmth(embedder, asyncio.Event())
        embeddings = Embeddings(embedder, warmth.ready, embedder_circuit, telemetry)
        puts = Puts(service, service_circuit, embeddings, book, telemetry, guard)
        apart = Apart()
        stack.callback(apart.close)
        proofs = Proofs(settings.proxy.credential_proof_seconds)
        cache = Cache(
            dialects=DIALECTS,
            book=book,
            judge=Judge(settings, book),
            apart=apart,
            lookups=Lookups(service, service_circuit, embeddings, book, proofs),
            puts=puts,
            proofs=proofs,
            headers=CacheHeaders(settings.proxy.headers),
            telemetry=telemetry,
            guard=guard,
            budget_seconds=settings.lookup_budget_ms / 1000,
        )
        flights = Flights(guard)
        most = settings.proxy.max_request_bytes
        transport = Transport(cache, relay, flights, telemetry, max_request_bytes=most)
        made = Proxy(
            ProxyApp(transport, _tunnels(settings), telemetry, lambda: made.missing()), book, warmth
        )
        every = settings.proxy.policy_poll_seconds
        poller = Poller(book, service, service_circuit, every_seconds=every)
        await stack.enter_async_context(_background(poller.run(), warmth.run()))
        stack.push_async_callback(puts.drain, _DRAIN_SECONDS)
        stack.push_async_callback(flights.close)
        yield made


def _service(settings: Settings) -> ServiceClient:
    proxy = settings.proxy
    seconds = proxy.put_timeout_ms / 1000
    return ServiceClient(proxy.service_url, proxy.tls, put_timeout_seconds=seconds)


def _relay(settings: Settings) -> Relay:
    proxy = settings.proxy
    return Relay(
        proxy.upstream,
        connect_seconds=proxy.upstream_connect_seconds,
        idle_seconds=proxy.upstream_idle_seconds,
    )


def _tunnels(settings: Settings) -> Tunnels:
    proxy = settings.proxy
    return Tunnels(
        proxy.upstream,
        DIALECTS,
        connect_seconds=proxy.upstream_connect_seconds,
        idle_seconds=proxy.upstream_idle_seconds,
    )


@asynccontextmanager
async def _background(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(_report)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a task in the background failed", exc_info=task.exception())
