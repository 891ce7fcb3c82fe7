"""The model in this process answers one text after the other: a queue is load, not a fault."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from cachesvc.errors import EmbedError
from cachesvc.proxy.embedding import Embeddings
from cachesvc.proxy.seam import Budget, Circuit, CircuitOpen, DeadlinePassed, within
from cachesvc.proxy.telemetry import Telemetry
from tests.proxy.rig import chat_body, eventually, rig
from tests.proxy.test_large_requests import _judged

MANY = 40


@dataclasses.dataclass
class Turns:
    """A local embedder with one thread, so to speak: a text is done when the test says so."""

    provider: str = "local"
    space: str = "turns"
    asked: int = 0

    def __post_init__(self) -> None:
        self.go = asyncio.Semaphore(0)

    async def warm(self) -> None: ...

    async def embed(self, text: str, *, request_id: str | None = None) -> bytes | None:
        self.asked += 1
        await self.go.acquire()
        if "fails" in text:
            raise EmbedError("the local model could not be run")
        return b"\0\0\x80?" * 4

    async def close(self) -> None: ...


class Line:
    """Callers of one embedder, each with a budget of its own."""

    def __init__(self, provider: str = "local") -> None:
        self.turns, self.circuit = Turns(provider), Circuit()
        warm = asyncio.Event()
        warm.set()
        self.embeddings = Embeddings(self.turns, warm, self.circuit, Telemetry())
        self.judged = [_judged(chat_body(f"question {number}")) for number in range(100)]

    async def ask(self, number: int, seconds: float = 0.05) -> bytes | None:
        """One caller with a budget of so many seconds. Raises DeadlinePassed."""
        judged, budget = self.judged[number], Budget(seconds)
        return await within(budget, self.embeddings.for_lookup(judged, budget))

    async def late(self, number: int) -> None:
        """One caller whose budget ends before its turn."""
        with pytest.raises(DeadlinePassed):
            await self.ask(number)
        await asyncio.sleep(0)

    async def end(self) -> None:
        for _ in range(200):
            self.turns.go.release()
        waiting = [j.embedding for j in self.judged if j.embedding is not None]
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_for_ones_turn_does_not_open_the_circuit() -> None:
    line = Line()
    # Those whose turn comes have time enough on any machine; the others have until then, too.
    seconds = [60] * 5 + [1] * (MANY - 5)
    calls = [asyncio.create_task(line.ask(number, seconds[number])) for number in range(MANY)]
    await eventually(lambda: line.turns.asked == MANY)
    for _ in range(5):
        line.turns.go.release()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [bytes] * 5 + [DeadlinePassed] * (MANY - 5)
    assert not line.circuit.open
    await line.end()


@pytest.mark.parametrize("provider", ["local", "openai"])
async def test_an_embedder_that_finishes_nothing_at_all_is_left_alone(provider: str) -> None:
    line = Line(provider)
    for number in range(5):
        await line.late(number)
    assert line.circuit.open
    with pytest.raises(CircuitOpen):
        await line.embeddings.for_lookup(line.judged[50], Budget(1))
    await line.end()


async def test_a_full_queue_is_no_failure_of_the_model() -> None:
    line = Line()
    calls = [
        asyncio.create_task(line.embeddings.for_lookup(judged, Budget(10)))
        for judged in line.judged
    ]
    refused = await asyncio.gather(*calls[48:], return_exceptions=True)
    assert {type(error) for error in refused} == {EmbedError}
    assert (line.turns.asked, line.circuit.open) == (48, False)
    await line.end()
    assert all(await asyncio.gather(*calls[:48]))


async def test_puts_embed_while_the_circuit_is_open_where_the_model_is_local() -> None:
    for provider, vectors in (("local", True), ("openai", False)):
        line = Line(provider)
        for number in range(5):
            await line.late(number)
        assert line.circuit.open
        for _ in range(10):
            line.turns.go.release()
        assert (await line.embeddings.for_put(line.judged[60]) is not None) == vectors
        await line.end()


@pytest.mark.alone
async def test_after_a_burst_of_new_questions_the_model_is_still_asked() -> None:
    async with rig(embed="local", budget_ms=50) as proxy:
        await asyncio.gather(*(proxy.chat(f"How do I reset {n} things?") for n in range(MANY)))
        assert (await proxy.metrics())['cachesvc_circuit_open{part="embedder"}'] == 0
