"""Whatever is wrong with the cache inside a client, its call goes on and nothing wrong is kept."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from cachesvc.proxy.sides import Keeper
from tests.inprocess.rig import inside
from tests.inprocess.test_transport import COLOURS, HEADERS, post
from tests.proxy.rig import STREAM, chat_body, completion, events
from tests.servers import answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cachesvc import CachingTransport
    from tests.servers import Seen, Wire

BUDGET = {"proxy.lookup_budget_ms": 100}


class Stuck:
    """Holds up the loop of a transport's core."""

    def __init__(self, transport: CachingTransport) -> None:
        self._thread = transport._thread
        self._go = threading.Event()
        self._begun = threading.Event()

    def hold(self) -> None:
        self._thread.tell(self._wait)
        assert self._begun.wait(5)

    def release(self) -> None:
        """Returns when all that waited has been run."""
        self._go.set()
        through = threading.Event()
        # A task's first step is one round of the loop after the call that makes it.
        self._thread.tell(lambda: self._thread.tell(lambda: self._thread.tell(through.set)))
        assert through.wait(5)

    def _wait(self) -> None:
        self._begun.set()
        self._go.wait(20)


@contextmanager
def stuck(transport: CachingTransport) -> Iterator[Stuck]:
    found = Stuck(transport)
    found.hold()
    try:
        yield found
    finally:
        found.release()


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_core_that_hangs_costs_its_budget_and_little_more(
    tmp_path: Path, colour: str
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make, **BUDGET)
        with stuck(transport):
            began = time.monotonic()
            got = await post(httpx, colour, transport, rig.url, chat_body())
            spent = time.monotonic() - began
        assert (got.status_code, "x-ai-cache-status" in got.headers) == (200, False)
        assert spent < 1.5


class Slow(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Its core hangs when the answer's head comes, and is well again after the first piece."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.core: Stuck | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": STREAM}, stream=self._sync())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": STREAM}, stream=self._async())

    def _told(self) -> Iterator[bytes]:
        assert self.core is not None
        for number, piece in enumerate(self.pieces):
            if number == 1:
                self.core.release()
            yield piece

    def _sync(self) -> httpx.SyncByteStream:
        assert self.core is not None
        self.core.hold()
        told = self._told()

        class Body(httpx.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                return told

        return Body()

    def _async(self) -> httpx.AsyncByteStream:
        assert self.core is not None
        self.core.hold()
        told = self._told()

        class Body(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                for piece in told:
                    yield piece

        return Body()


@pytest.mark.parametrize("colour", COLOURS)
async def test_an_answer_whose_beginning_the_cache_missed_is_never_kept(
    tmp_path: Path, colour: str
) -> None:
    async with inside(tmp_path) as rig:
        first, rest = events("the first half", end=""), events("the second half")
        inner = Slow([first, rest])
        transport = await asyncio.to_thread(rig.make, inner, **BUDGET)
        inner.core = Stuck(transport)
        got = await post(httpx, colour, transport, rig.url, chat_body(stream=True))
        assert got.content == first + rest
        await transport.aclose()  # waits for what would be put
        assert rig.service.puts == []


async def test_a_core_that_hangs_at_the_end_never_holds_up_the_callers_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachesvc.inprocess.passing._LOOK_SECONDS", 0.5)
    body = events("a")
    said_all = threading.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(body, media_type=STREAM, framing="close"))
        await asyncio.to_thread(said_all.wait, 5)
        wire.close()

    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        client = httpx.AsyncClient(transport=transport, headers=HEADERS)
        longest = 0.0

        async def beat() -> None:
            nonlocal longest
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - began)

        async with client.stream("POST", rig.url, content=chat_body(stream=True)) as response:
            core = Stuck(transport)
            await asyncio.to_thread(core.hold)
            beating = asyncio.create_task(beat())
            said_all.set()
            assert await response.aread() == body
            await asyncio.wait([beating], timeout=0.05)  # it was asleep meanwhile
            beating.cancel()
            await asyncio.to_thread(core.release)
        assert longest < 0.3


@pytest.mark.parametrize("colour", COLOURS)
async def test_closing_the_cache_while_it_looks_at_an_end_raises_nothing(
    tmp_path: Path, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = events("a")
    looking = threading.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(body, media_type=STREAM, framing="close"))
        wire.close()

    async def endless(keeper: Keeper) -> None:
        looking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Keeper, "ending", endless)
    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        call = asyncio.create_task(post(httpx, colour, transport, rig.url, chat_body(stream=True)))
        await asyncio.to_thread(looking.wait, 5)
        await asyncio.to_thread(transport._closing)
        assert (await call).content == body


async def test_a_caller_cancelled_while_the_cache_reads_the_head_leaves_no_connection(
    tmp_path: Path,
) -> None:
    closed, reached = asyncio.Event(), asyncio.Event()

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield completion()

        async def aclose(self) -> None:
            closed.set()

    class Inner(httpx.AsyncBaseTransport):
        core: Stuck

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.to_thread(self.core.hold)
            reached.set()
            return httpx.Response(200, headers={"content-type": "a/b"}, stream=Body())

    async with inside(tmp_path) as rig:
        inner = Inner()
        transport = await asyncio.to_thread(rig.make, inner)
        inner.core = Stuck(transport)
        call = asyncio.create_task(post(httpx, "async", transport, rig.url, chat_body()))
        await reached.wait()
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(inner.core.release)
        assert closed.is_set()


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_bug_before_the_cache_is_asked_costs_nothing_but_the_cache(
    tmp_path: Path, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        cache = transport._thread.cache
        assert cache is not None

        def broken(head: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(cache, "dialect_of", broken)
        got = await post(httpx, colour, transport, rig.url, chat_body())
        assert (got.status_code, "x-ai-cache-status" in got.headers) == (200, False)


async def test_a_bug_of_the_core_is_told_once_and_the_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        cache = transport._thread.cache
        assert cache is not None

        async def broken(*_: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(cache, "consult", broken)
        got = await post(httpx, "async", transport, rig.url, chat_body())
        assert got.status_code == 200
        gc.collect()
        await asyncio.sleep(0)
        assert [record.name for record in caplog.records] == ["cachesvc.inprocess"]


async def test_a_core_may_be_closed_from_its_own_thread(tmp_path: Path) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        told: list[BaseException | None] = []

        def close() -> None:
            try:
                transport._closing()
                told.append(None)
            except RuntimeError as exc:
                told.append(exc)

        thread = transport._thread._thread
        transport._thread.tell(close)
        await asyncio.to_thread(thread.join, 5)
        assert (told, thread.is_alive()) == ([None], False)


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_service_that_is_away_costs_nothing(
    tmp_path: Path, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachesvc.inprocess.thread._WARM_WITHIN_SECONDS", 0.2)
    async with inside(tmp_path) as rig:
        await rig.service.server.stop()
        transport = await asyncio.to_thread(rig.make)
        for _ in range(20):
            began = time.monotonic()
            got = await post(httpx, colour, transport, rig.url, chat_body())
            assert (got.status_code, "x-ai-cache-status" in got.headers) == (200, False)
            assert time.monotonic() - began < 1
        assert len(rig.upstream.seen) == 20
