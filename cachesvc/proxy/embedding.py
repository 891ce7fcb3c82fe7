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
_LOCAL = "local"
# Fewer than the local embedder lets wait: its refusal would look like a failure.
_MOST_LOCAL = 48


class Embeddings:
    """The embedder as requests use it: one call each, shared by lookup and put.

    The local embedder takes one text after the other. Waiting for one's turn is load and no fault:
    there a deadline counts against it only when it finished nothing at all in the meantime.
    """

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
        self._local = embedder is not None and embedder.provider == _LOCAL
        self._running = 0
        self._finished = 0

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
        self._check_queue()
        finished = self._finished
        with self._circuit.call(budget, lambda: not self._local or self._finished == finished):
            return await asyncio.shield(self._call(judged))

    async def for_put(self, judged: Judged) -> bytes | None:
        """The vector, None when there is none or it does not come within 10 s."""
        if not self.wanted(judged) or not self._warm.is_set():
            return None
        if judged.embedding is None and self._circuit.open and not self._local:
            return None
        try:
            if judged.embedding is None:
                self._check_queue()
            async with asyncio.timeout(_PUT_WAITS_SECONDS):
                return await asyncio.shield(self._call(judged))
        except (EmbedError, TimeoutError):
            return None

    def _check_queue(self) -> None:
        if self._local and self._running >= _MOST_LOCAL:
            raise EmbedError("too many texts are waiting")

    def _call(self, judged: Judged) -> asyncio.Task[bytes | None]:
        if judged.embedding is None:
            self._running += 1
            judged.embedding = asyncio.create_task(self._embed(judged))
            judged.embedding.add_done_callback(self._ended)
        return judged.embedding

    async def _embed(self, judged: Judged) -> bytes | None:
        if self._embedder is None or judged.question is None:
            return None
        provider, began = self._embedder.provider, time.monotonic()
        try:
            vector = await self._embedder.embed(judged.question.text, request_id=judged.request_id)
            self._finished += 1
            return vector
        except EmbedError as exc:
            cause = type(exc.__cause__).__name__ if exc.__cause__ else "EmbedError"
            self._telemetry.embedding_failed(provider, cause)
            raise
        finally:
            self._telemetry.embedded(provider, time.monotonic() - began)

    def _ended(self, task: asyncio.Task[bytes | None]) -> None:
        self._running -= 1
        # asyncio reports errors that nobody retrieved.
        if not task.cancelled():
            task.exception()
