"""What goes on after callers have their replies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from cachesvc.service.aliases import Aliases
from cachesvc.service.hits import Hits
from cachesvc.service.limits import Limits
from cachesvc.service.shadow import Shadow

if TYPE_CHECKING:
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.settings import Settings
    from cachesvc.store.base import AdminStore, EntryStore
    from cachesvc.store.records import RecordStore


class Behind(NamedTuple):
    """All of it; none of it holds up a reply."""

    aliases: Aliases
    shadow: Shadow
    limits: Limits
    hits: Hits

    async def drain(self, seconds: float) -> None:
        """Let what is under way end, for so long at most."""
        await asyncio.gather(*(part.drain(seconds) for part in self))


def behind(
    settings: Settings,
    store: EntryStore,
    admin: AdminStore,
    records: RecordStore,
    telemetry: Telemetry,
) -> Behind:
    return Behind(
        Aliases(store, telemetry),
        Shadow(records, telemetry),
        Limits(admin, settings, telemetry),
        Hits(records, telemetry),
    )
