"""What anybody may read: is it alive, is it ready, what did it do, what does it speak."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from cachesvc.errors import Busy, StoreError
from cachesvc.service.bounds import Bounds
from cachesvc.service.exchange import Reply, refusal
from cachesvc.service.identity import LOCAL

if TYPE_CHECKING:
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.settings import Settings
    from cachesvc.store.base import AdminStore

_PING_SECONDS = 1.0
_COUNT_SECONDS = 5.0  # longest a scrape waits for the database
_COUNT_AGAIN_SECONDS = 15.0
_TENANTS_AT_MOST = 50
_PLACES = 16


class State(msgspec.Struct):
    """`{"status": "alive"}` or `{"status": "ready"}`."""

    status: str


class Health:
    """The handlers. They have places of their own: a full queue makes no service unready."""

    def __init__(self, settings: Settings, store: AdminStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        self._bounds = Bounds(places=_PLACES, seconds=_PING_SECONDS)
        owners = (identity.tenant for identity in settings.identity)
        self._tenants = set(owners) if settings.service.tls.on else {LOCAL.tenant}
        self._counting = asyncio.Lock()
        self._counted_at = float("-inf")

    async def livez(self) -> Reply:
        return Reply(State("alive"))

    async def readyz(self) -> Reply:
        try:
            await self._bounds.run(self._store.ping(), _PING_SECONDS)
        except StoreError as exc:
            return refusal(503, "UNAVAILABLE", exc.message.partition("\n")[0])
        return Reply(State("ready"))

    async def metrics(self) -> Reply:
        self._telemetry.settle()
        async with self._counting:
            if time.monotonic() - self._counted_at >= _COUNT_AGAIN_SECONDS:
                await self._count()
        text = generate_latest(self._telemetry.registry)
        return Reply(text=text, media_type=CONTENT_TYPE_PLAIN_0_0_4.encode())

    async def _count(self) -> None:
        try:
            counted = await self._bounds.run(self._entries(), _COUNT_SECONDS)
        except (StoreError, Busy):
            # Asked again at the next scrape: it may be back.
            self._telemetry.entries.hide()
        else:
            self._counted_at = time.monotonic()
            self._telemetry.entries.show(counted)

    async def _entries(self) -> list[tuple[str, str, int]]:
        tenants = sorted(self._tenants | self._telemetry.tenants)[:_TENANTS_AT_MOST]
        return [
            (tenant, count.policy_id, count.entries)
            for tenant in tenants
            for count in await self._store.counts(tenant)
        ]
