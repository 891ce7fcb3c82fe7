"""The operator's verbs on Postgres."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from cachesvc.core.model import Answer
from cachesvc.errors import NotFound, StoreUnavailable
from cachesvc.store import schema
from cachesvc.store.base import EntryRow, Place, PolicyCount, PolicyRow, Selection
from cachesvc.store.bodies import unpacked
from cachesvc.store.eviction import Eviction
from cachesvc.store.patience import BATCH, in_batches, patient
from cachesvc.store.postgres import prompt_hash, read_policy_row
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy
    from cachesvc.store.base import Listing
    from cachesvc.store.pool import Database

_BEFORE_THE_FIRST = UUID(int=0)
_BEFORE_THE_NEWEST = datetime(9999, 1, 1, tzinfo=timezone.utc), UUID(int=2**128 - 1)


class PostgresAdmin(Eviction):
    """Policies, purges and counts in Postgres: an AdminStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def policies(self, tenant: str) -> list[PolicyRow]:
        rows = await self._database.rows(statement("policies"), tenant)
        return [read_policy_row(row) for row in rows]

    async def save_policy(
        self, tenant: str, policy_id: str, policy: Policy
    ) -> tuple[PolicyRow, bool]:
        row = await self._database.row(
            statement("save_policy"), *_policy_values(tenant, policy_id, policy)
        )
        return read_policy_row(row), row["created"]

    async def create_policy_once(self, tenant: str, policy_id: str, policy: Policy) -> bool:
        row = await self._database.row(
            statement("create_policy_once"), *_policy_values(tenant, policy_id, policy)
        )
        return row is not None

    async def delete_policy(self, tenant: str, policy_id: str) -> bool:
        """From the first statement on nothing of it answers; then its entries go."""
        if await self._database.row(statement("delete_policy"), tenant, policy_id) is None:
            return False
        await self._remove(Selection(tenant, policy_id), None)
        for name in ("trim_shadow_hits", "trim_verdicts"):
            await in_batches(self._database, name, tenant, policy_id, 0, timedelta(0))
        return True

    async def delete_entry(self, tenant: str, entry_id: UUID) -> bool:
        if not await self._database.rows(
            statement("raise_generation"), tenant, None, entry_id, False
        ):
            return False
        removed, _ = await self._remove(Selection(tenant, entry_id=entry_id), None)
        return removed > 0

    async def purge(self, selection: Selection, *, dry_run: bool) -> tuple[int, int]:
        tenant, policy_id = selection.tenant, selection.policy_id
        if policy_id is not None:
            known = await self._database.row(statement("policy_exists"), tenant, policy_id)
            if not known["exists"]:
                raise NotFound("cache_policy not found")
        if dry_run:
            async with patient(self._database) as connection:
                values = _selected(selection)
                return await connection.fetchval(statement("count_selected"), *values), 0
        whole = selection.whole_policy
        raised = await self._database.rows(
            statement("raise_generation"), tenant, policy_id, selection.entry_id, whole
        )
        oldest = raised[0]["oldest_generation"] if whole and raised else None
        _, lived = await self._remove(selection, oldest)
        if selection.tags is None and selection.model is None:
            # A record knows neither: those went with the entries, as far as these were there.
            await in_batches(self._database, "remove_shadow_hits", *_selected_records(selection))
        return lived, lived

    async def entry(self, tenant: str, entry_id: UUID) -> EntryRow | None:
        row = await self._database.row(statement("entry"), tenant, entry_id)
        if row is None:
            return None
        return _entry_row(row, unpacked(row["body"], row["inflated_bytes"]))

    async def entries(self, listing: Listing) -> list[EntryRow]:
        async with patient(self._database) as connection:
            rows = await connection.fetch(statement("list_entries"), *_listed(listing))
        return [_entry_row(row, b"") for row in rows]

    async def counts(self, tenant: str) -> list[PolicyCount]:
        async with patient(self._database) as connection:
            rows = await connection.fetch(statement("counts"), tenant)
        return [
            PolicyCount(
                policy_id=row["id"],
                entries=row["entries"],
                aliases=row["aliases"],
                body_bytes=row["body_bytes"],
                oldest_created_at=row["oldest_created_at"],
                generation=row["generation"],
                shadow_hits=row["shadow_hits"],
            )
            for row in rows
        ]

    async def remove_expired(self, limit: int) -> int:
        removed = 0
        async with patient(self._database) as connection:
            policies = await connection.fetch(statement("policies_with_dead"), limit)
        for policy in policies:
            for name in ("remove_dead", "remove_dead_aliases"):
                room = min(limit - removed, BATCH)
                if room <= 0:
                    return removed
                async with patient(self._database) as connection:
                    removed += await connection.fetchval(
                        statement(name), policy["tenant"], policy["id"], room
                    )
        return removed

    async def ping(self) -> None:
        migrated = await self._database.row(statement("revision_table"))
        row = await self._database.row(statement("revision")) if migrated[0] else None
        complaint = schema.complaint(row["version_num"] if row else None)
        if complaint:
            raise StoreUnavailable(complaint)

    async def _remove(self, selection: Selection, oldest: int | None) -> tuple[int, int]:
        """Remove what a purge selects in batches: how many, and how many of them still lived."""
        removed, lived, last = 0, 0, _BEFORE_THE_FIRST
        while True:
            async with patient(self._database) as connection:
                row = await connection.fetchrow(
                    statement("remove_selected"), *_selected(selection), oldest, last, BATCH
                )
            if row["last"] is None:
                return removed, lived
            removed, lived = removed + row["removed"], lived + row["lived"]
            last = row["last"]


def _policy_values(tenant: str, policy_id: str, policy: Policy) -> tuple[object, ...]:
    """The document as it was given: a default that is derived stays derived."""
    document = msgspec.json.encode(policy).decode()
    return tenant, policy_id, document, policy.ttl_seconds, policy.semantic_ttl


def _selected(selection: Selection) -> tuple[object, ...]:
    age, prompt = selection.older_than_seconds, selection.prompt_text
    return (
        selection.tenant,
        selection.policy_id,
        selection.scope,
        None if selection.tags is None else list(selection.tags),
        selection.model,
        None if age is None else timedelta(seconds=age),
        None if prompt is None else prompt_hash(prompt),
        selection.entry_id,
    )


def _selected_records(selection: Selection) -> tuple[object, ...]:
    tenant, policy_id, scope, _, _, age, prompt, entry_id = _selected(selection)
    return tenant, policy_id, scope, age, prompt, entry_id


def _listed(listing: Listing) -> tuple[object, ...]:
    age, prompt = listing.older_than_seconds, listing.prompt
    return (
        listing.tenant,
        listing.policy_id,
        listing.scope,
        None if listing.tags is None else list(listing.tags),
        listing.model,
        None if age is None else timedelta(seconds=age),
        listing.tier,
        None if prompt is None else _in_any_case(prompt),
        listing.state,
        *(listing.after or _BEFORE_THE_NEWEST),
        listing.limit,
    )


def _in_any_case(text: str) -> str:
    """A regular expression that finds `text`: its database may fold the case of ASCII only."""
    return "".join(map(_any_case, text))


def _any_case(character: str) -> str:
    variants = {character, character.lower(), character.upper(), character.casefold()}
    one_each = sorted(variant for variant in variants if len(variant) == 1)
    if len(one_each) > 1:
        return f"[{''.join(one_each)}]"
    punctuation = character.isascii() and not (character.isalnum() or character.isspace())
    return f"\\{character}" if punctuation else character


def _entry_row(row: Any, body: bytes) -> EntryRow:
    return EntryRow(
        entry_id=row["id"],
        place=Place(row["tenant"], row["policy_id"], row["scope"]),
        answer=Answer(
            body,
            row["media_type"],
            row["prompt_tokens"],
            row["completion_tokens"],
            row["upstream_ms"],
        ),
        exact_key=row["exact_key"],
        partition=row["partition"],
        space=row["space"],
        dimensions=row["dimensions"],
        prompt_text=row["prompt_text"].decode(),
        model=row["model"],
        tags=tuple(row["tags"]),
        generation=row["generation"],
        provenance=row["provenance"],
        created_at=row["created_at"],
        exact_expires_at=row["exact_until"],
        semantic_expires_at=row["semantic_until"],
        aliases=row["aliases"],
        state=row["state"],
        body_bytes=row["body_bytes"],
        hits=row["hits"],
        last_hit_at=row["last_hit_at"],
    )
