"""A line to a test's database that can be frozen: nothing passes, and nobody is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from types import TracebackType


class Relay:
    """A TCP port in front of a Unix socket, in a thread of its own. Use it as a context manager."""

    def __init__(self, database_url: str) -> None:
        self._parts = urlsplit(database_url)
        query = parse_qs(self._parts.query)
        self._socket = f"{query['host'][0]}/.s.PGSQL.{query.get('port', ['5432'])[0]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open = asyncio.Event()
        self._lines: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""

    def __enter__(self) -> Relay:
        self._thread.start()
        self._open.set()
        starting = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        port = starting.result(10)
        user, path = self._parts.username, self._parts.path
        self.url = f"postgresql://{user}@127.0.0.1:{port}{path}?sslmode=disable"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def freeze(self) -> None:
        self._loop.call_soon_threadsafe(self._open.clear)

    def thaw(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._line, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        # What was accepted a moment ago, say a driver's request to cancel, becomes a line yet.
        for _ in range(10):
            await asyncio.sleep(0)
            lines = list(self._lines)
            for line in lines:
                line.cancel()
            await asyncio.gather(*lines, return_exceptions=True)
        # What is still on its way out keeps no connection open beyond its loop.
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        self._writers.add(writer)
        writers, pumps = [writer], list[asyncio.Task[None]]()
        try:
            there_reader, there = await asyncio.open_unix_connection(self._socket)
            self._writers.add(there)
            writers.append(there)
            ways = [self._pass(reader, there), self._pass(there_reader, writer)]
            pumps += [asyncio.create_task(way) for way in ways]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The end of the test: start_server would log it.
            pass
        finally:
            # All of it at once: the end of the test may come while this waits.
            for each in writers:
                each.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in writers:
                with contextlib.suppress(OSError):
                    await each.wait_closed()
            self._writers.difference_update(writers)
            self._lines.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
