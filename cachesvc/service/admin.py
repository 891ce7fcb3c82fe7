"""The operator's half: policies, purge, stats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.errors import Forbidden
from cachesvc.service import codec
from cachesvc.service.entries import selected_entry
from cachesvc.service.exchange import Reply
from cachesvc.service.policies import policy_not_found
from cachesvc.store.base import Selection
from cachesvc.wire import PolicyList, check_policy_id, rfc3339
from cachesvc.wire_admin import PolicyStats, PurgeReply, StatsReply, check_purge

if TYPE_CHECKING:
    from datetime import datetime

    from cachesvc.service.bounds import Bounds
    from cachesvc.service.exchange import Call
    from cachesvc.service.limits import Limits
    from cachesvc.service.policies import Policies
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import AdminStore

# Removing and counting go over many rows, in batches that have bounds of their own.
_PATIENT_SECONDS = 600.0


class Admin:
    """The handlers."""

    def __init__(
        self,
        store: AdminStore,
        policies: Policies,
        limits: Limits,
        telemetry: Telemetry,
        bounds: Bounds,
    ) -> None:
        self._store = store
        self._policies = policies
        self._limits = limits
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
        self._limits.check(tenant, row.policy)
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
            entry_id=None if request.entry_id is None else selected_entry(request.entry_id),
        )
        dry_run = bool(request.dry_run)
        matched, purged = await self._bounds.run(
            self._store.purge(selection, dry_run=dry_run), _PATIENT_SECONDS
        )
        self._telemetry.evicted("purged", purged)
        return Reply(PurgeReply(matched=matched, purged=purged, dry_run=dry_run))

    async def stats(self, call: Call) -> Reply:
        call.require("admin")
        tenant = call.caller.tenant
        counts = await self._bounds.run(self._store.counts(tenant), _PATIENT_SECONDS)
        self._telemetry.settle()
        policies = []
        for count in counts:
            totals = self._telemetry.totals(tenant, count.policy_id)
            policies.append(
                PolicyStats(
                    policy_id=count.policy_id,
                    entries=count.entries,
                    aliases=count.aliases,
                    shadow_hits=count.shadow_hits,
                    body_bytes=count.body_bytes,
                    oldest_created_at=_moment(count.oldest_created_at),
                    generation=count.generation,
                    hits=totals.hits,
                    misses=totals.misses,
                    puts=totals.puts,
                    prompt_tokens_saved=totals.prompt_tokens,
                    completion_tokens_saved=totals.completion_tokens,
                    upstream_seconds_saved=round(totals.upstream_seconds, 6),
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


def _moment(value: datetime | None) -> str | None:
    return None if value is None else rfc3339(value)
