"""Leaves aliases behind semantic hits, off the reply path: no caller ever waits for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.service.batches import Batches, Terms

if TYPE_CHECKING:
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import Alias, EntryStore, Place

_TERMS = Terms("alias", "leaving aliases", every_seconds=0.02, at_most=2000, batch=100)


class Aliases:
    """The aliases that wait to be written, each exact key's latest."""

    def __init__(self, store: EntryStore, telemetry: Telemetry) -> None:
        self._store = store
        self._batches: Batches[tuple[Place, bytes], Alias] = Batches(
            _TERMS, self._write, _latest, telemetry
        )

    def leave(self, alias: Alias) -> None:
        """Have an alias written."""
        self._batches.add(alias.place.tenant, (alias.place, alias.exact_key), alias)

    async def drain(self, seconds: float) -> None:
        """Write what waits, within so long."""
        await self._batches.drain(seconds)

    async def _write(self, _tenant: str, batch: list[tuple[tuple[Place, bytes], Alias]]) -> None:
        await self._store.add_aliases([alias for _, alias in batch])


def _latest(_: Alias, latest: Alias) -> Alias:
    return latest
