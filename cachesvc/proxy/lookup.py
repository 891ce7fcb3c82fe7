"""What the cache has for a request: exact, then embed, then nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.core.model import Bypass, Miss, Reason, Tier
from cachesvc.errors import ServiceError
from cachesvc.proxy.client import Found
from cachesvc.proxy.seam import fail_open
from cachesvc.wire import LookupRequest

if TYPE_CHECKING:
    from cachesvc.proxy.client import ServiceClient
    from cachesvc.proxy.embed_tables import EmbedTables
    from cachesvc.proxy.embedding import Embeddings
    from cachesvc.proxy.judge import Judged
    from cachesvc.proxy.policies import PolicyBook
    from cachesvc.proxy.proofs import Proofs
    from cachesvc.proxy.seam import Budget, Circuit

_NOT_FOUND = 404
# After these the nearest would not be served either.
_FINAL = frozenset({Reason.SHADOW, Reason.SCOPE_REQUIRED, Reason.NO_POLICY})


class Lookups:
    """Asks the service within a request's budget, and never fails."""

    def __init__(
        self,
        service: ServiceClient,
        circuit: Circuit,
        tables: EmbedTables,
        book: PolicyBook,
        proofs: Proofs,
    ) -> None:
        self._service = service
        self._circuit = circuit
        self._tables = tables
        self._book = book
        self._proofs = proofs

    async def outcome(self, judged: Judged, budget: Budget) -> Found | Miss | Bypass:
        """The answer, or why there is none; and the generation a put will need."""
        outcome = await self._outcome(judged, budget)
        needs_generation = not isinstance(outcome, Found) and judged.not_put is None
        if needs_generation and judged.generation is None and not judged.steering.only_if_cached:
            judged.generation = await self._generation(judged, budget)
        return outcome

    async def _outcome(self, judged: Judged, budget: Budget) -> Found | Miss | Bypass:
        if judged.bypass is not None:
            return judged.bypass
        if self._proofs.missing(judged.policy, judged.credential):
            return Miss(Reason.CREDENTIAL_UNPROVEN)
        if not self._circuit.would_allow():
            return Miss(Reason.CIRCUIT_OPEN)
        return await fail_open(budget, self._look_up(judged, budget))

    async def _look_up(self, judged: Judged, budget: Budget) -> Found | Miss | Bypass:
        exact: Found | Miss | Bypass | None = None
        embeddings = self._tables.of(judged.policy)
        compares = embeddings.wanted(judged)
        self._tables.count_missing(judged)
        if _exact_first(judged) or not compares:
            exact = await self._ask(judged, budget, _exact_request(judged, embeddings))
            if not isinstance(exact, Miss) or exact.reason in _FINAL or not compares:
                return exact
        vector = await embeddings.for_lookup(judged, budget)
        if vector is None:
            return exact or await self._ask(judged, budget, _exact_request(judged, embeddings))
        nearest = await self._ask(judged, budget, _nearest_request(judged, vector, embeddings))
        # Why an entry that is there did not answer says more than that none is near.
        told = isinstance(exact, Miss) and exact.reason not in (Reason.NO_ENTRY, Reason.TIER_OFF)
        return exact if exact is not None and told and isinstance(nearest, Miss) else nearest

    async def _ask(
        self, judged: Judged, budget: Budget, request: LookupRequest
    ) -> Found | Miss | Bypass:
        try:
            with self._circuit.call(budget):
                asked = await self._service.lookup(request, request_id=judged.request_id)
        except ServiceError as exc:
            if exc.status != _NOT_FOUND:
                raise
            self._book.drop(judged.policy.id)
            judged.bypass = Bypass(Reason.NO_POLICY)
            return judged.bypass
        if isinstance(asked.outcome, Miss) and asked.outcome.reason is Reason.NO_POLICY:
            judged.bypass = Bypass(Reason.NO_POLICY)  # switched off since the list was read
        judged.generation = self._book.learn(judged.policy.id, asked.generation)
        return asked.outcome

    async def _generation(self, judged: Judged, budget: Budget) -> int | None:
        """The policy's generation now; the last one read, where it cannot be had in time."""
        if self._circuit.would_allow() and budget.left > 0:
            known = await fail_open(budget, self._ask_generation(judged, budget))
            if isinstance(known, int):
                return self._book.learn(judged.policy.id, known)
        return self._book.generation(judged.policy.id)

    async def _ask_generation(self, judged: Judged, budget: Budget) -> int:
        with self._circuit.call(budget):
            policy = await self._service.policy(judged.policy.id, request_id=judged.request_id)
        return policy.generation


def _exact_first(judged: Judged) -> bool:
    """The exact tier is asked by itself, since its hit saves the embedding.

    In shadow nothing is served and nothing saved: one call lets the service judge both tiers.
    """
    return judged.policy.has(Tier.EXACT) and judged.policy.mode != "shadow"


def _exact_request(judged: Judged, embeddings: Embeddings) -> LookupRequest:
    return LookupRequest(
        policy_id=judged.policy.id,
        exact_key=judged.exact_key,
        scope=judged.scope,
        space=embeddings.space or None,
        max_age_seconds=judged.steering.max_age_seconds,
        retry=judged.retry or None,
    )


def _nearest_request(judged: Judged, vector: bytes, embeddings: Embeddings) -> LookupRequest:
    return LookupRequest(
        policy_id=judged.policy.id,
        embedding=vector,
        exact_key=judged.exact_key,
        partition=judged.partition(),
        after_exact=_exact_first(judged),
        scope=judged.scope,
        space=embeddings.space,
        prompt_text=judged.question.text if judged.question else None,
        max_age_seconds=judged.steering.max_age_seconds,
        retry=judged.retry or None,
    )
