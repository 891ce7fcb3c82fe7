"""The cache without a listener: put together, warmed, followed, closed."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachesvc.dialects.table import DIALECTS
from cachesvc.embed.factory import create_all
from cachesvc.errors import ConfigError
from cachesvc.proxy.apart import Apart
from cachesvc.proxy.cache import Cache
from cachesvc.proxy.client import ServiceClient
from cachesvc.proxy.embed_tables import EmbedTables
from cachesvc.proxy.headers import CacheHeaders
from cachesvc.proxy.judge import Judge
from cachesvc.proxy.lookup import Lookups
from cachesvc.proxy.policies import PolicyBook, Poller
from cachesvc.proxy.proofs import Proofs
from cachesvc.proxy.puts import Puts
from cachesvc.proxy.seam import Circuit, Guard
from cachesvc.proxy.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping
    from typing import Any

    from cachesvc.embed.base import Embedder
    from cachesvc.settings import Settings

log = logging.getLogger("cachesvc.proxy")

_DRAIN_SECONDS = 2.0


@dataclass
class Core:
    """The cache, and what it waits for before it can do all it should."""

    cache: Cache
    book: PolicyBook
    tables: EmbedTables
    telemetry: Telemetry
    guard: Guard

    def missing(self) -> list[str]:
        """What is not ready, in words; nothing when all is."""
        found = [] if self.book.loaded.is_set() else ["policies are not loaded"]
        return [*found, *self.tables.missing()]

    async def settle(self, seconds: float) -> None:
        """Wait for policies and embedders, so long at most."""
        events = [self.book.loaded, *self.tables.ready]
        waits = [asyncio.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, timeout=seconds)
        for wait in waits:
            wait.cancel()
        for what in self.missing():
            log.warning("%s; requests go to the upstream without the cache until then", what)


async def make_embedders(settings: Settings) -> dict[str, Embedder | None]:
    """The embedder of every table; in a thread, since loading or building a model blocks.

    Raises ConfigError and StartError.
    """
    tables = {"": settings.embed, **settings.embed_tables}
    return await asyncio.to_thread(create_all, tables, settings.data_path, log.info)


def check_secret(settings: Settings) -> None:
    """Raises ConfigError where scopes could not be made."""
    if not settings.proxy.scope_secret:
        raise ConfigError(
            "proxy.scope_secret: is required (or scope_secret_file): at least 16 characters,"
            " the same in every proxy that shares a cache"
        )


@asynccontextmanager
async def running_core(
    settings: Settings, embedders: Mapping[str, Embedder | None]
) -> AsyncIterator[Core]:
    """The cache and its background work; leaving ends both, puts last.

    Takes `embedders` over. Raises ConfigError.
    """
    async with AsyncExitStack() as stack:
        telemetry = Telemetry()
        tables = EmbedTables(embedders, telemetry)
        stack.push_async_callback(tables.close)
        seconds = settings.proxy.put_timeout_ms / 1000
        service = ServiceClient(
            settings.proxy.service_url, settings.proxy.tls, put_timeout_seconds=seconds
        )
        stack.push_async_callback(service.close)
        book, circuit, guard = PolicyBook(), Circuit(), Guard(telemetry.bug)
        telemetry.watch_circuit("service", lambda: circuit.open)
        puts = Puts(service, circuit, tables, book, telemetry, guard)
        apart = Apart()
        stack.callback(apart.close)
        proofs = Proofs(settings.proxy.credential_proof_seconds)
        cache = Cache(
            dialects=DIALECTS,
            book=book,
            judge=Judge(settings, book),
            apart=apart,
            lookups=Lookups(service, circuit, tables, book, proofs),
            puts=puts,
            proofs=proofs,
            headers=CacheHeaders(settings.proxy.headers),
            telemetry=telemetry,
            guard=guard,
            budget_seconds=lambda table: settings.lookup_budget_ms(table) / 1000,
        )
        every = settings.proxy.policy_poll_seconds
        poller = Poller(book, service, circuit, every_seconds=every, check=tables.check)
        await stack.enter_async_context(_background(poller.run(), *tables.warming()))
        stack.push_async_callback(puts.drain, _DRAIN_SECONDS)
        yield Core(cache, book, tables, telemetry, guard)


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
