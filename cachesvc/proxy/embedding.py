"""One vector per miss: the lookup waits for it within its budget, the put a little longer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cachesvc.core.model import Tier
from cachesvc.errors import EmbedError

if TYPE_CHECKING:
    from cachesvc.embed.base import Embedder
    from cachesvc.proxy.judge import Judged
    from cachesvc.proxy.seam import Budget, Circuit
    from cachesvc.proxy.telemetry import Telemetry

_PUT_WAITS_SECONDS = 10.0


class Embeddings:
    """The embedder as requests use it: one call each, shared by lookup and put."""

    def __init__(
        self,
        embedder: Embedder | None,
        warm: asyncio.Event,
        circuit: Circuit,
        telemetry: Telemetry,
    ) -> None:
        """Until `warm` is set nothing is embedded: the vectors might be another model's."""
        self._embedder = embedder
        self._warm = warm
        self._circuit = circuit
        self._telemetry = telemetry

    @property
    def space(self) -> str:
        return self._embedder.space if self._embedder else ""

    def wanted(self, judged: Judged) -> bool:
        """The request has a semantic tier here."""
        semantic = judged.policy.has(Tier.SEMANTIC) and judged.question is not None
        return semantic and self._embedder is not None

    async def for_lookup(self, judged: Judged, budget: Budget) -> bytes | None:
        """The vector, None when the text is too long for the model.

        Raises EmbedError, and CircuitOpen while the embedder is left alone. Cancelled, it leaves
        the call to the put.
        """
        if not self._warm.is_set():
            raise EmbedError("the embedder is not warm")
        with self._circuit.call(budget):
            return await asyncio.shield(self._call(judged))

    async def for_put(self, judged: Judged) -> bytes | None:
        """The vector, None when there is none or it does not come within 10 s."""
        if not self.wanted(judged) or not self._warm.is_set():
            return None
        if judged.embedding is None and self._circuit.open:
            return None
        try:
            async with asyncio.timeout(_PUT_WAITS_SECONDS):
                return await asyncio.shield(self._call(judged))
        except (EmbedError, TimeoutError):
            return None

    def _call(self, judged: Judged) -> asyncio.Task[bytes | None]:
        if judged.embedding is None:
            judged.embedding = asyncio.create_task(self._embed(judged))
            judged.embedding.add_done_callback(_retrieve)
        return judged.embedding

    async def _embed(self, judged: Judged) -> bytes | None:
        if self._embedder is None or judged.question is None:
            return None
        provider, began = self._embedder.provider, time.monotonic()
        try:
            return await self._embedder.embed(judged.question.text, request_id=judged.request_id)
        except EmbedError as exc:
            cause = type(exc.__cause__).__name__ if exc.__cause__ else "EmbedError"
            self._telemetry.embedding_failed(provider, cause)
            raise
        finally:
            self._telemetry.embedded(provider, time.monotonic() - began)


def _retrieve(task: asyncio.Task[bytes | None]) -> None:
    # asyncio reports errors that nobody retrieved.
    if not task.cancelled():
        task.exception()
