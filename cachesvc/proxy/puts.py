"""Puts: after the caller's last byte, in tasks of their own, bounded in number and in bytes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachesvc.core.model import Reason, Tier
from cachesvc.errors import ServiceError
from cachesvc.proxy.apart import offloaded
from cachesvc.wire import MAX_LABEL_CHARS, PutRequest

if TYPE_CHECKING:
    from cachesvc.proxy.capture import Capture, Sealed
    from cachesvc.proxy.client import ServiceClient
    from cachesvc.proxy.embed_tables import EmbedTables
    from cachesvc.proxy.judge import Judged
    from cachesvc.proxy.policies import PolicyBook
    from cachesvc.proxy.seam import Circuit, Guard
    from cachesvc.proxy.telemetry import Telemetry

_MOST = 256
_MOST_BYTES = 64 * 1024 * 1024
_DROPPED = "dropped"
_INVALID = 422
_CODED_COSTS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A captured answer and how long the upstream took for it."""

    judged: Judged
    capture: Capture
    upstream_ms: float


class Puts:
    """Hands captured answers to the service."""

    def __init__(
        self,
        service: ServiceClient,
        circuit: Circuit,
        tables: EmbedTables,
        book: PolicyBook,
        telemetry: Telemetry,
        guard: Guard,
    ) -> None:
        self._service = service
        self._book = book
        self._circuit = circuit
        self._tables = tables
        self._telemetry = telemetry
        self._guard = guard
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0

    def start(self, answer: Answer) -> None:
        """Keep an answer if it may be kept. Returns at once; drops it when too much is waiting."""
        size = answer.capture.size + answer.judged.size
        if len(self._tasks) >= _MOST or self._bytes + size > _MOST_BYTES:
            self.skip(answer.judged, _DROPPED)
            return
        self._bytes += size
        task = asyncio.create_task(self._put(answer))
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, size))

    def skip(self, judged: Judged, result: str) -> None:
        """Keep nothing, and count why."""
        self._telemetry.not_put(judged.policy.id, result)
        judged.release()

    async def drain(self, seconds: float) -> None:
        """Wait for what is under way, then cancel the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._bytes -= size

    async def _put(self, answer: Answer) -> None:
        judged = answer.judged
        try:
            with self._guard:
                refusal = await self._kept(answer)
                if refusal is not None:
                    self._telemetry.not_put(judged.policy.id, refusal)
        finally:
            judged.release()

    async def _kept(self, answer: Answer) -> Reason | None:
        """None once the service has decided about the answer, else why it was not sent."""
        judged, capture = answer.judged, answer.capture
        if judged.not_put is not None:
            return judged.not_put
        cost = capture.size + _CODED_COSTS if capture.coded else capture.size
        sealed = await offloaded(cost, capture.seal)
        if sealed.refusal is not None:
            return sealed.refusal
        if judged.generation is None:
            return Reason.CACHE_UNAVAILABLE
        vector = await self._tables.of(judged.policy).for_put(judged)
        if vector is None and not judged.policy.has(Tier.EXACT):
            return Reason.TIER_OFF
        if self._circuit.open:
            return Reason.CIRCUIT_OPEN
        try:
            request = self._request(answer, sealed, vector)
            await self._service.put(request, request_id=judged.request_id)
        except ServiceError as exc:
            return self._refused(judged, exc)
        return None

    def _refused(self, judged: Judged, error: ServiceError) -> Reason:
        # A generation that the service has never seen is from before its database was restored.
        if error.status == _INVALID and ": generation: " in error.message:
            self._book.forget(judged.policy.id)
            return Reason.STALE_GENERATION
        return Reason.CACHE_UNAVAILABLE

    def _request(self, answer: Answer, sealed: Sealed, vector: bytes | None) -> PutRequest:
        judged = answer.judged
        fits = len(judged.model) <= MAX_LABEL_CHARS and "\x00" not in judged.model
        return PutRequest(
            policy_id=judged.policy.id,
            body=sealed.body,
            media_type=sealed.media_type,
            embedding=vector,
            exact_key=judged.exact_key,
            partition=None if vector is None else judged.partition(),
            scope=judged.scope,
            space=None if vector is None else self._tables.of(judged.policy).space,
            prompt_text=judged.question.text if judged.question else None,
            prompt_tokens=sealed.reading.prompt_tokens,
            completion_tokens=sealed.reading.completion_tokens,
            ttl_seconds=judged.steering.ttl_seconds,
            generation=judged.generation,
            model=judged.model if fits else None,
            upstream_ms=answer.upstream_ms,
        )
