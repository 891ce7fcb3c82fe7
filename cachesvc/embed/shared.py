"""Equal texts in flight share one embedding call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachesvc.errors import EmbedError

if TYPE_CHECKING:
    from cachesvc.embed.base import Embedder


@dataclass(slots=True)
class _Flight:
    call: asyncio.Task[bytes | None]
    waiters: int = 0


class SharedEmbedder:
    """An embedder that asks another one, once per text in flight. It remembers nothing.

    The call belongs to no caller: it goes on while anyone waits for it, and is cancelled when the
    last one has left, so that nobody's text holds a place in a queue.
    """

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self._flights: dict[str, _Flight] = {}
        self._ending: set[asyncio.Task[bytes | None]] = set()

    @property
    def space(self) -> str:
        return self._inner.space

    @property
    def provider(self) -> str:
        return self._inner.provider

    async def warm(self) -> None:
        await self._inner.warm()

    async def embed(self, text: str, *, request_id: str | None = None) -> bytes | None:
        """As the inner embedder's. The first caller's `request_id` goes with the call."""
        flight = self._flights.get(text)
        if flight is None:
            call = asyncio.create_task(self._inner.embed(text, request_id=request_id))
            flight = self._flights[text] = _Flight(call)
            call.add_done_callback(lambda ended: self._land(text, ended))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.call)
        except asyncio.CancelledError:
            # Ours, or the call's because the embedder was closed under it?
            if flight.call.cancelled() and not _being_cancelled():
                raise EmbedError("the embedder is closed") from None
            raise
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.call.done():
                # Whoever comes next must not join a call that is about to end.
                self._forget(text, flight.call)
                self._ending.add(flight.call)
                flight.call.cancel()

    def _land(self, text: str, call: asyncio.Task[bytes | None]) -> None:
        self._forget(text, call)
        self._ending.discard(call)
        if not call.cancelled():
            # Retrieved here, so that asyncio does not report a failure that nobody waited for.
            call.exception()

    def _forget(self, text: str, call: asyncio.Task[bytes | None]) -> None:
        flight = self._flights.get(text)
        if flight is not None and flight.call is call:
            del self._flights[text]

    async def close(self) -> None:
        """Cancel what is in flight, then close the inner embedder."""
        calls = [*(flight.call for flight in self._flights.values()), *self._ending]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._inner.close()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
