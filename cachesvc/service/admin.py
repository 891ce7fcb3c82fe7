"""The operator's half: policies, purge, one entry, stats."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from msgspec import Raw

from cachesvc.errors import Forbidden, Invalid, NotFound
from cachesvc.service import codec
from cachesvc.service.exchange import Reply
from cachesvc.service.policies import policy_not_found
from cachesvc.store.base import Selection
from cachesvc.wire import (
    EntryReply,
    PolicyList,
    PolicyStats,
    PurgeReply,
    StatsReply,
    check_policy_id,
    check_purge,
    rfc3339,
)

if TYPE_CHECKING:
    from datetime import datetime

    from cachesvc.service.bounds import Bounds
    from cachesvc.service.exchange import Call
    from cachesvc.service.policies import Policies
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import AdminStore, EntryRow

# Removing and counting go over many rows, in batches that have bounds of their own.
_PATIENT_SECONDS = 600.0


class Admin:
    """The handlers."""

    def __init__(
        self, store: AdminStore, policies: Policies, telemetry: Telemetry, bounds: Bounds
    ) -> None:
        self._store = store
        self._policies = policies
        self._telemetry = telemetry
        self._bounds = bounds

    async def list_policies(self, call: Call) -> Reply:
        _require_reader(call)
        rows = await self._bounds.run(self._store.policies(call.caller.tenant))
        return Reply(PolicyList(policies=[row.policy for row in rows]))

    async def get_policy(self, call: Call) -> Reply:
        _require_reader(call)
        policy_id = _policy_id(call)
        row = await self._bounds.run(self._policies.read(call.caller.tenant, policy_id))
        return Reply(row.policy)

    async def put_policy(self, call: Call) -> Reply:
        call.require("admin")
        tenant, policy_id = call.caller.tenant, _policy_id(call)
        policy = codec.read_policy_body(call.body, call.format, policy_id)
        row, new = await self._bounds.run(self._store.save_policy(tenant, policy_id, policy))
        self._policies.forget(tenant, policy_id)
        return Reply(row.policy, status=201 if new else 200)

    async def delete_policy(self, call: Call) -> Reply:
        call.require("admin")
        tenant, policy_id = call.caller.tenant, _policy_id(call)
        known = await self._bounds.run(
            self._store.delete_policy(tenant, policy_id), _PATIENT_SECONDS
        )
        self._policies.forget(tenant, policy_id)
        if not known:
            raise policy_not_found()
        return Reply(status=204)

    async def purge(self, call: Call) -> Reply:
        request = codec.read_purge(call.body, call.format)
        check_purge(request)
        call.require("admin")
        selection = Selection(
            tenant=call.caller.tenant,
            policy_id=request.policy_id,
            scope=request.scope,
            tags=tuple(request.tags) if request.tags else None,
            model=request.model,
            older_than_seconds=request.older_than_seconds,
            prompt_text=request.prompt_text,
            entry_id=None if request.entry_id is None else _selected_entry(request.entry_id),
        )
        dry_run = bool(request.dry_run)
        matched, purged = await self._bounds.run(
            self._store.purge(selection, dry_run=dry_run), _PATIENT_SECONDS
        )
        self._telemetry.evicted("purged", purged)
        return Reply(PurgeReply(matched=matched, purged=purged, dry_run=dry_run))

    async def get_entry(self, call: Call) -> Reply:
        call.require("admin")
        row = await self._bounds.run(self._store.entry(call.caller.tenant, _entry_id(call)))
        if row is None:
            raise _entry_not_found()
        return Reply(_entry_reply(row))

    async def delete_entry(self, call: Call) -> Reply:
        call.require("admin")
        gone = await self._bounds.run(
            self._store.delete_entry(call.caller.tenant, _entry_id(call)), _PATIENT_SECONDS
        )
        if not gone:
            raise _entry_not_found()
        self._telemetry.evicted("purged", 1)
        return Reply(status=204)

    async def stats(self, call: Call) -> Reply:
        call.require("admin")
        tenant = call.caller.tenant
        counts = await self._bounds.run(self._store.counts(tenant), _PATIENT_SECONDS)
        self._telemetry.settle()
        policies = []
        for count in counts:
            hits, misses, puts = self._telemetry.tally(tenant, count.policy_id)
            policies.append(
                PolicyStats(
                    policy_id=count.policy_id,
                    entries=count.entries,
                    aliases=count.aliases,
                    body_bytes=count.body_bytes,
                    oldest_created_at=_moment(count.oldest_created_at),
                    generation=count.generation,
                    hits=hits,
                    misses=misses,
                    puts=puts,
                )
            )
        return Reply(StatsReply(tenant=tenant, policies=policies))


def _require_reader(call: Call) -> None:
    if not (call.caller.may("data") or call.caller.may("admin")):
        raise Forbidden("role: this needs 'data' or 'admin', and the caller has neither")


def _policy_id(call: Call) -> str:
    policy_id = call.parameters["policy_id"]
    check_policy_id(policy_id)
    return policy_id


def _selected_entry(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise Invalid("entry_id: must be a UUID") from exc


def _entry_id(call: Call) -> UUID:
    try:
        return UUID(call.parameters["entry_id"])
    except ValueError as exc:
        raise _entry_not_found() from exc


def _entry_not_found() -> NotFound:
    return NotFound("entry not found")


def _entry_reply(row: EntryRow) -> EntryReply:
    answer = row.answer
    reply = EntryReply(
        entry_id=str(row.entry_id),
        policy_id=row.place.policy_id,
        scope=row.place.scope,
        space=row.space,
        dimensions=row.dimensions,
        exact_key=None if row.exact_key is None else row.exact_key.hex(),
        partition=row.partition.hex() or None,
        prompt_text=row.prompt_text,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        model=row.model,
        tags=list(row.tags),
        upstream_ms=row.upstream_ms,
        generation=row.generation,
        provenance=row.provenance,
        created_at=rfc3339(row.created_at),
        exact_expires_at=_moment(row.exact_expires_at),
        semantic_expires_at=_moment(row.semantic_expires_at),
        aliases=row.aliases,
    )
    if answer.media_type is None:
        reply.response = Raw(answer.body)
    else:
        reply.body, reply.media_type = answer.body, answer.media_type
    return reply


def _moment(value: datetime | None) -> str | None:
    return None if value is None else rfc3339(value)
