"""`CachingTransport`: the proxy without a proxy, inside an application's own HTTP client."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from concurrent.futures import wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from cachesvc.config import load
from cachesvc.core.model import Reason
from cachesvc.inprocess.package import package_of
from cachesvc.inprocess.passing import Came, Passing
from cachesvc.inprocess.thread import CoreThread
from cachesvc.proxy.request import Head, Whole, events_of, with_length
from cachesvc.settings import name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
    from concurrent.futures import Future

    from cachesvc.inprocess.package import Package
    from cachesvc.proxy.cache import Onward
    from cachesvc.proxy.request import RawHeaders
    from cachesvc.proxy.sides import Side

_T = TypeVar("_T")

log = logging.getLogger("cachesvc.inprocess")

# The core keeps to its budget by itself; this is for a core that hangs.
_SLACK_SECONDS = 0.25


class CachingTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport for `httpx` and for `httpx2` clients, sync and async, that asks the cache first.

        client = httpx2.Client(transport=cachesvc.CachingTransport(scope_secret="…"))
        openai = OpenAI(http_client=client)

    It keys, embeds, asks the service, replays a hit, or calls `inner` and keeps a copy, by the same
    policies and with the same keys as `cachesvc proxy` in front of the same upstream: the two share
    answers. Any fault of the cache costs a miss. Whatever is no `POST` to a cached path goes to
    `inner` as it is. Two things the proxy does and this does not: identical requests under way do
    not share a call, and what a fork of the process asks goes on without the cache.

    `inner` is what really calls: a transport of the client's package, by default a plain one. It is
    called in the caller's own thread or event loop. An async client must run on asyncio.
    """

    def __init__(
        self,
        inner: Any = None,
        *,
        config: str | None = None,
        service_url: str | None = None,
        scope_secret: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Settings as `cachesvc proxy` reads them: file, environment, then what is given here.

        `settings` maps dotted names ("proxy.lookup_budget_ms") to values. Loads the embedding model
        and reads the policies, 5 s at most. Raises ConfigError and StartError.
        """
        given = {"proxy.service_url": service_url, "proxy.scope_secret": scope_secret}
        self._settings = load(config, {**(settings or {}), **given})
        self._inner = inner
        self._made: dict[bool, Any] = {}
        self._making = threading.Lock()
        self._named = {name_of(self._settings.proxy.upstream): self._settings.upstream_name}
        self._thread = CoreThread(self._settings)
        # A program that ends without closing still hands over its last answers.
        tables = ("", *self._settings.embed_tables)
        longest = max(self._settings.lookup_budget_ms(table) for table in tables)
        self._patience = longest / 1000 + _SLACK_SECONDS
        self._closing = weakref.finalize(self, self._thread.close)

    def handle_request(self, request: Any) -> Any:
        package, inner = package_of(request), self._call(request, asynchronous=False)
        asked = self._question(request, package)
        found = None if asked is None else self._wait(self._thread.submit(asked))
        if isinstance(found, Whole):
            return _reply(package, found, package.stream(_replayed(found), _nothing))
        if found is None:
            return inner.handle_request(request)
        with self._leaving(found.side):
            response = inner.handle_request(request)
        came = Came(response)
        headers = self._wait(self._thread.submit(_head(found.side, came)))
        passing = Passing(self._thread, found.side, response.stream, package, framed=came.framed)
        stream = package.stream(passing.pieces(), passing.close)
        return _passed(package, response, headers, stream)

    async def handle_async_request(self, request: Any) -> Any:
        package, inner = package_of(request), self._call(request, asynchronous=True)
        asked = self._question(request, package)
        found = None if asked is None else await self._wait_async(self._thread.submit(asked))
        if isinstance(found, Whole):
            stream = package.async_stream(_replayed_async(found), _nothing_async)
            return _reply(package, found, stream)
        if found is None:
            return await inner.handle_async_request(request)
        with self._leaving(found.side):
            response = await inner.handle_async_request(request)
        came = Came(response)
        headers = await self._wait_async(self._thread.submit(_head(found.side, came)))
        passing = Passing(self._thread, found.side, response.stream, package, framed=came.framed)
        stream = package.async_stream(passing.async_pieces(), passing.aclose)
        return _passed(package, response, headers, stream)

    @contextmanager
    def _leaving(self, side: Side) -> Iterator[None]:
        """Where no answer comes, the cache is told; what was raised is the caller's."""
        came = False
        try:
            yield
            came = True
        finally:
            if not came:
                self._thread.tell(lambda: side.broken(Reason.INCOMPLETE))

    def close(self) -> None:
        """End the cache's thread, after what is under way is kept (2 s at most), and `inner`."""
        self._closing()
        for inner in self._inners():
            if hasattr(inner, "close"):
                inner.close()

    async def aclose(self) -> None:
        """The same for an AsyncClient."""
        await asyncio.to_thread(self._closing)
        for inner in self._inners():
            if hasattr(inner, "aclose"):
                await inner.aclose()

    def _inners(self) -> list[Any]:
        return [*self._made.values()] if self._inner is None else [self._inner]

    def _call(self, request: object, *, asynchronous: bool) -> Any:
        if self._inner is not None:
            return self._inner
        with self._making:
            if asynchronous not in self._made:
                package = package_of(request)
                make = package.async_transport if asynchronous else package.transport
                self._made[asynchronous] = make()
            return self._made[asynchronous]

    def _question(
        self, request: Any, package: Package
    ) -> Coroutine[Any, Any, Whole | Onward] | None:
        """What to ask the cache; None for what is none of its own."""
        cache = self._thread.cache
        if cache is None or request.method != "POST" or not cache.wants_body:
            return None
        raw_path, _, query = request.url.raw_path.decode("ascii").partition("?")
        path = next((path for path in cache.paths if raw_path.endswith(path)), None)
        if path is None:
            return None
        try:
            body: bytes = request.content
        except package.RequestNotRead:
            return None  # it is streamed, and can be read only once
        head = self._head(request, raw_path.removesuffix(path), path, query)
        dialect = cache.dialect_of(head)
        if dialect is None or len(body) > self._settings.proxy.max_request_bytes:
            return None
        return cache.consult(dialect, head, body)

    def _head(self, request: Any, prefix: str, path: str, query: str) -> Head:
        url = request.url
        host = url.raw_host.decode("ascii")
        host = f"[{host}]" if ":" in host else host
        port = "" if url.port is None else f":{url.port}"
        name = name_of(f"{url.scheme}://{host}{port}{prefix}")
        headers = tuple(request.headers.raw)
        return Head("POST", path, query, headers, upstream=self._named.get(name, name))

    def _wait(self, answer: Future[_T] | None) -> _T | None:
        """The result, None where there is none in time: then it goes on without."""
        if answer is None:
            return None
        wait([answer], timeout=self._patience)
        return _result(answer)

    async def _wait_async(self, answer: Future[_T] | None) -> _T | None:
        if answer is None:
            return None
        try:
            await asyncio.wait([asyncio.wrap_future(answer)], timeout=self._patience)
        finally:
            answer.cancel()  # nothing happens to one that is done
        return _result(answer)


def _result(answer: Future[_T]) -> _T | None:
    if not answer.done() or answer.cancelled():
        answer.cancel()
        return None
    bug = answer.exception()
    if bug is None:
        return answer.result()
    log.error("a bug in cachesvc, %s; the call goes on without it", type(bug).__name__)
    return None


async def _head(side: Side, came: Came) -> RawHeaders:
    """On the core's loop, since what a side learns belongs to it."""
    return side.head(came)


def _reply(package: Package, found: Whole, stream: Any) -> Any:
    extensions = {"http_version": b"HTTP/1.1"}
    headers = list(with_length(found))
    return package.Response(found.status, headers=headers, stream=stream, extensions=extensions)


def _passed(package: Package, response: Any, headers: RawHeaders | None, stream: Any) -> Any:
    """The inner transport's response with our headers, and watched."""
    return package.Response(
        response.status_code,
        headers=response.headers.raw if headers is None else list(headers),
        stream=stream,
        extensions=response.extensions,
    )


def _replayed(found: Whole) -> Iterator[bytes]:
    events = events_of(found.body) if found.paced_seconds else [found.body]
    for event in events:
        yield event
        time.sleep(found.paced_seconds / len(events))


async def _replayed_async(found: Whole) -> AsyncIterator[bytes]:
    events = events_of(found.body) if found.paced_seconds else [found.body]
    for event in events:
        yield event
        await asyncio.sleep(found.paced_seconds / len(events))


def _nothing() -> None: ...


async def _nothing_async() -> None: ...
