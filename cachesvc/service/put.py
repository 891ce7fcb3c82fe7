"""`POST /cache/put`: check, keep, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UnsetType

from cachesvc.core.model import Answer, Reason, Tier
from cachesvc.core.policy import MAX_TTL_SECONDS
from cachesvc.core.vectors import read_vector
from cachesvc.errors import Invalid
from cachesvc.service import codec
from cachesvc.service.asked import scope_is_missing
from cachesvc.service.exchange import Reply
from cachesvc.store.base import NewEntry, Place
from cachesvc.wire import PutReply, PutRequest, check_put, rfc3339

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy
    from cachesvc.core.vectors import Vector
    from cachesvc.service.bounds import Bounds
    from cachesvc.service.exchange import Call
    from cachesvc.service.limits import Limits
    from cachesvc.service.policies import Policies
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import EntryStore

STORED = "stored"


class Put:
    """The handler."""

    def __init__(
        self,
        store: EntryStore,
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

    async def __call__(self, call: Call) -> Reply:
        request = codec.read_put(call.body, call.format)
        check_put(request)
        call.require("put")
        vector = None if request.embedding is None else read_vector(request.embedding)
        place = Place(call.caller.tenant, request.policy_id, request.scope or "")
        provenance = f"{call.caller.name} {call.request_id}".rstrip()
        reply = await self._bounds.run(self._put(request, place, vector, provenance))
        self._telemetry.put(place.tenant, place.policy_id, reply.reason)
        return Reply(reply)

    async def _put(
        self, request: PutRequest, place: Place, vector: Vector | None, provenance: str
    ) -> PutReply:
        """Raises NotFound, StoreUnavailable, and Invalid for a generation that is yet to come."""
        # Read anew each time: a put is off its caller's path, and may not go by an old policy.
        row = await self._policies.read(place.tenant, place.policy_id)
        answer = _answer(request)
        refused = _refusal(row.policy, request, place, answer)
        if refused is not None:
            return _nothing(refused)
        stored = await self._store.put(
            _entry(request, row.policy, place, answer, vector, provenance)
        )
        if stored.newer:
            raise Invalid(
                f"generation: is {request.generation}; the policy's current one is {stored.current}"
            )
        if stored.entry_id is None or stored.expires_at is None:
            return _nothing(Reason.STALE_GENERATION)
        self._limits.check(place.tenant, row.policy)
        return PutReply(
            entry_id=str(stored.entry_id),
            expires_at=rfc3339(stored.expires_at),
            stored=True,
            reason=STORED,
        )


def _nothing(reason: Reason) -> PutReply:
    return PutReply(entry_id=None, expires_at=None, stored=False, reason=reason.value)


def _answer(request: PutRequest) -> Answer:
    facts = request.prompt_tokens or 0, request.completion_tokens or 0, request.upstream_ms
    if isinstance(request.response, UnsetType):
        return Answer(request.body or b"", request.media_type, *facts)
    return Answer(bytes(request.response), None, *facts)


def _refusal(policy: Policy, request: PutRequest, place: Place, answer: Answer) -> Reason | None:
    """Why the policy lets nothing be stored, or None when it does."""
    if not policy.active:
        return Reason.NO_POLICY
    if scope_is_missing(place, policy):
        return Reason.SCOPE_REQUIRED
    if len(answer.body) > policy.max_body_bytes or policy.max_body_bytes == 0:
        return Reason.TOO_LARGE
    exact = request.exact_key is not None and policy.has(Tier.EXACT)
    semantic = request.embedding is not None and policy.has(Tier.SEMANTIC)
    return None if exact or semantic else Reason.TIER_OFF


def _entry(
    request: PutRequest,
    policy: Policy,
    place: Place,
    answer: Answer,
    vector: Vector | None,
    provenance: str,
) -> NewEntry:
    key, ttl = request.exact_key, request.ttl_seconds
    return NewEntry(
        place=place,
        answer=answer,
        exact_key=bytes.fromhex(key) if key is not None and policy.has(Tier.EXACT) else None,
        partition=bytes.fromhex(request.partition or ""),
        space=request.space or "",
        vector=vector if policy.has(Tier.SEMANTIC) else None,
        prompt_text=request.prompt_text or "",
        ttl_seconds=None if ttl is None else min(ttl, MAX_TTL_SECONDS),
        generation=request.generation,
        tags=tuple(request.tags or ()),
        model=request.model or "",
        provenance=provenance,
    )
