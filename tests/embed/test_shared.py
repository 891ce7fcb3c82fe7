"""Equal texts in flight share one call, and nobody's leaving disturbs the others."""

from __future__ import annotations

import asyncio
import gc
import struct
from typing import TYPE_CHECKING

import pytest

from cachesvc.embed.shared import SharedEmbedder
from cachesvc.errors import EmbedError
from tests.embed.provider import answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesvc.embed.remote import RemoteEmbedder
    from tests.embed.provider import FakeProvider

VECTOR = struct.pack("<3f", 0.6, 0.8, 0.0)


@pytest.fixture
async def reports() -> list[dict[str, object]]:
    """What asyncio reports: errors that nobody retrieved, tasks that were dropped."""
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: told.append(report))
    return told


@pytest.fixture
async def shared(
    remote: RemoteEmbedder, reports: list[dict[str, object]]
) -> AsyncIterator[SharedEmbedder]:
    """A shared embedder over HTTP; after the test, asyncio must have nothing to report."""
    embedder = SharedEmbedder(remote)
    yield embedder
    await embedder.close()
    gc.collect()
    await asyncio.sleep(0)
    assert reports == []


async def _asking(
    shared: SharedEmbedder, provider: FakeProvider, *texts: str
) -> list[asyncio.Task[bytes | None]]:
    """Tasks that wait on a provider which has the call and does not answer yet."""
    provider.open.clear()
    tasks = [asyncio.create_task(shared.embed(text)) for text in texts]
    for _ in set(texts):
        await asyncio.wait_for(provider.arrived.acquire(), 5)
    return tasks


async def test_ten_equal_texts_at_once_cost_one_call(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    tasks = await _asking(shared, provider, *["the same"] * 10)
    provider.open.set()
    assert await asyncio.gather(*tasks) == [VECTOR] * 10
    assert len(provider.received) == 1


async def test_different_texts_are_different_calls(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    tasks = await _asking(shared, provider, "one", "two", "one")
    provider.open.set()
    await asyncio.gather(*tasks)
    assert sorted(call.body["input"] for call in provider.received) == ["one", "two"]


async def test_nothing_is_remembered_after_the_answer(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    await shared.embed("again")
    await shared.embed("again")
    assert len(provider.received) == 2


@pytest.mark.parametrize("leaver", [0, 1, 9], ids=["first", "second", "last"])
async def test_one_who_leaves_takes_nothing_from_the_others(
    shared: SharedEmbedder, provider: FakeProvider, leaver: int
) -> None:
    tasks = await _asking(shared, provider, *["the same"] * 10)
    tasks[leaver].cancel()
    provider.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(leaver), asyncio.CancelledError)
    assert answers == [VECTOR] * 9
    assert len(provider.received) == 1


async def test_a_deadline_of_one_is_not_a_deadline_of_all(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    (patient,) = await _asking(shared, provider, "the same")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(shared.embed("the same"), 0.01)
    provider.open.set()
    assert await patient == VECTOR


async def test_when_all_have_left_the_call_ends_and_the_next_is_a_new_one(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    tasks = await _asking(shared, provider, *["the same"] * 3)
    for task in tasks:
        task.cancel()
    fresh = asyncio.create_task(shared.embed("the same"))
    await asyncio.wait(tasks)
    await asyncio.wait_for(provider.gone.wait(), 5)
    provider.open.set()
    assert await asyncio.wait_for(fresh, 5) == VECTOR
    assert len(provider.received) == 2


async def test_a_failure_reaches_every_waiter_and_leaves_nothing_behind(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    working = provider.reply
    provider.reply = answer(b"", "500 Oops")
    tasks = await _asking(shared, provider, *["the same"] * 5)
    provider.open.set()
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(failure) for failure in failures] == ["openai: answered 500"] * 5
    provider.reply = working
    assert await shared.embed("the same") == VECTOR


class BreaksOff:
    """An embedder whose calls fail, instead of ending quietly, when they are cancelled."""

    space = "test"
    provider = "test"

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.broke_off = asyncio.Event()

    async def warm(self) -> None: ...

    async def close(self) -> None: ...

    async def embed(self, text: str, *, request_id: str | None = None) -> bytes | None:
        self.asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.broke_off.set()
            raise EmbedError(f"broke off {text}") from None
        return None


async def test_a_failure_that_nobody_waits_for_is_not_reported_by_asyncio(
    reports: list[dict[str, object]],
) -> None:
    inner = BreaksOff()
    task = asyncio.create_task(SharedEmbedder(inner).embed("the same"))
    await asyncio.wait_for(inner.asked.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.wait_for(inner.broke_off.wait(), 5)
    await asyncio.sleep(0)
    del task, inner
    gc.collect()
    assert reports == []


async def test_the_first_callers_request_id_goes_with_the_call(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    provider.open.clear()
    calls = [shared.embed("the same", request_id=f"req-{i}") for i in range(3)]
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.wait_for(provider.arrived.acquire(), 5)
    provider.open.set()
    await asyncio.gather(*tasks)
    assert [call.headers["x-request-id"] for call in provider.received] == ["req-0"]


async def test_closing_fails_who_waits_instead_of_cancelling_them(
    shared: SharedEmbedder, provider: FakeProvider
) -> None:
    tasks = await _asking(shared, provider, "the same", "the same")
    await shared.close()
    for task in tasks:
        with pytest.raises(EmbedError, match="the embedder is closed"):
            await task


async def test_it_says_what_the_embedder_below_says(
    shared: SharedEmbedder, remote: RemoteEmbedder, provider: FakeProvider
) -> None:
    assert (shared.space, shared.provider) == (remote.space, "openai")
    await shared.warm()
    assert len(provider.received) == 1
