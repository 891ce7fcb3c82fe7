"""Stores that stand before one another: memory before replicas before the database.

Each does what it can do better than the one behind it, and leaves the rest to that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cachesvc.store.base import EntryStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from cachesvc.core.model import Answer
    from cachesvc.store.base import (
        Alias,
        ExactQuery,
        Found,
        NearestQuery,
        NewEntry,
        Place,
        PolicyRow,
        Stored,
    )
    from cachesvc.store.whole import WholeCell


class LayeredStore(EntryStore, Protocol):
    """An EntryStore, and what those of its layers are told and asked that know more than it."""

    def recall(self, query: ExactQuery | NearestQuery) -> Found | None:
        """What the query would find, without waiting; None where no memory tells."""

    async def whole_cell(self, query: NearestQuery, most_rows: int) -> WholeCell | None:
        """All that lives where the query would search; None where more than so many rows are."""

    def heard(self, payload: str | None) -> None:
        """Something has changed: what a notification says of it, or, None, that may be anything."""

    async def settled(self) -> None:
        """Wait until every later lookup knows of what is committed by now."""


class Lowest:
    """Of a store that asks the database every time: it always knows, and remembers nothing."""

    def recall(self, query: ExactQuery | NearestQuery) -> Found | None:
        return None

    def heard(self, payload: str | None) -> None:
        pass

    async def settled(self) -> None:
        pass


class Layer:
    """A LayeredStore before another. What it does not do itself the one behind it does."""

    def __init__(self, store: LayeredStore) -> None:
        self._store = store

    async def policy(self, tenant: str, policy_id: str) -> PolicyRow | None:
        return await self._store.policy(tenant, policy_id)

    async def find_exact(self, query: ExactQuery) -> Found:
        return await self._store.find_exact(query)

    async def find_nearest(self, query: NearestQuery) -> Found:
        return await self._store.find_nearest(query)

    async def answer(self, place: Place, entry_id: UUID) -> Answer | None:
        return await self._store.answer(place, entry_id)

    async def put(self, entry: NewEntry) -> Stored:
        return await self._store.put(entry)

    async def add_aliases(self, aliases: Sequence[Alias]) -> None:
        await self._store.add_aliases(aliases)

    def recall(self, query: ExactQuery | NearestQuery) -> Found | None:
        return self._store.recall(query)

    async def whole_cell(self, query: NearestQuery, most_rows: int) -> WholeCell | None:
        return await self._store.whole_cell(query, most_rows)

    def heard(self, payload: str | None) -> None:
        self._store.heard(payload)

    async def settled(self) -> None:
        await self._store.settled()
