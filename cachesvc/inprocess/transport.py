"""`CachingTransport`: the proxy without a proxy, inside an application's own HTTP client."""

from __future__ import annotations

import asyncio
import logging
import weakref
from concurrent.futures import wait
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from cachesvc.config import load, revised
from cachesvc.core.model import Reason
from cachesvc.inprocess.package import package_of
from cachesvc.inprocess.passing import Came, Passing, awaited
from cachesvc.inprocess.replay import replay, replay_async
from cachesvc.inprocess.thread import CoreThread
from cachesvc.proxy.request import Head, Whole
from cachesvc.settings import Settings, name_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping
    from concurrent.futures import Future

    import httpx2

    from cachesvc.inprocess.package import Package
    from cachesvc.proxy.cache import Cache, Onward
    from cachesvc.proxy.request import RawHeaders
    from cachesvc.proxy.sides import Side

    # Both packages check by name what a transport is, and only for types: at run time httpx2 is not
    # loaded before a request of it comes, and need not be installed.
    class _Transport(
        httpx.BaseTransport,
        httpx.AsyncBaseTransport,
        httpx2.BaseTransport,
        httpx2.AsyncBaseTransport,
    ):
        def handle_request(self, request: Any) -> Any: ...
        async def handle_async_request(self, request: Any) -> Any: ...
else:

    class _Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
        """What a Client and an AsyncClient take."""


_T = TypeVar("_T")

log = logging.getLogger("cachesvc.inprocess")

# The core keeps to its budget by itself; this is for a core that hangs.
_SLACK_SECONDS = 0.25


class CachingTransport(_Transport):
    """A transport for `httpx` and for `httpx2` clients, sync and async, that asks the cache first.

        client = httpx2.Client(transport=cachesvc.CachingTransport(scope_secret="…"))
        openai = OpenAI(http_client=client)

    It keys, embeds, asks the service, replays a hit, or calls `inner` and keeps a copy, by the same
    policies and with the same keys as `cachesvc proxy` in front of the same upstream: the two share
    answers. Any fault of the cache costs a miss. Whatever is no `POST` to a cached path goes to
    `inner` as it is, and so does what is sent elsewhere than its URL says (another Host). Two
    things the proxy does and this does not: identical requests under way do not share a call, and
    what a fork of the process asks goes on without the cache.

    `inner` is what really calls: a transport of the client's package, by default a plain one. It is
    called in the caller's own thread or event loop. Under an event loop that is not asyncio's it is
    all there is: nothing is cached. A credential that only `inner` adds (a header, a client
    certificate) tells no callers apart: name what does in the policy's `scope_headers`.
    """

    def __init__(
        self,
        inner: Any = None,
        *,
        config: str | Settings | None = None,
        service_url: str | None = None,
        scope_secret: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Settings as `cachesvc proxy` reads them: file, environment, then what is given here.

        `config` is the file's path, or settings that were read before. `settings` maps dotted names
        ("proxy.lookup_budget_ms") to values. Blocks while the embedding model is loaded and, 5 s
        at most, until the policies are read. Raises ConfigError and StartError.
        """
        given = {"proxy.service_url": service_url, "proxy.scope_secret": scope_secret}
        told = {**(settings or {}), **given}
        if isinstance(config, Settings):
            self._settings = revised(config, told)
        else:
            self._settings = load(config, told)
        self._inner = inner
        self._made: dict[tuple[Package, bool], Any] = {}
        self._named = {name_of(self._settings.proxy.upstream): self._settings.upstream_name}
        self._thread = CoreThread(self._settings)
        # A program that ends without closing still hands over its last answers.
        tables = ("", *self._settings.embed_tables)
        longest = max(self._settings.lookup_budget_ms(table) for table in tables)
        self._patience = longest / 1000 + _SLACK_SECONDS
        self._closing = weakref.finalize(self, self._thread.close)

    def handle_request(self, request: Any) -> Any:
        package = package_of(request)
        inner = self._call(package, asynchronous=False)
        asked = self._question(request, package)
        found = None if asked is None else self._wait(self._thread.submit(asked))
        if isinstance(found, Whole):
            return replay(package, found)
        if found is None:
            return inner.handle_request(request)
        with self._leaving(found.side):
            response = inner.handle_request(request)
            came = Came(response)
            try:
                headers = self._wait(self._thread.submit(_head(found.side, came)))
            except BaseException:
                response.close()
                raise
        if headers is None:
            self._lost(found.side)
            return response
        passing = Passing(self._thread, found.side, response.stream, package, framed=came.framed)
        stream = package.stream(passing.pieces(), passing.close)
        return _passed(package, response, headers, stream)

    async def handle_async_request(self, request: Any) -> Any:
        package = package_of(request)
        inner = self._call(package, asynchronous=True)
        asked = self._question(request, package) if _on_asyncio() else None
        found = None if asked is None else await self._wait_async(self._thread.submit(asked))
        if isinstance(found, Whole):
            return replay_async(package, found)
        if found is None:
            return await inner.handle_async_request(request)
        with self._leaving(found.side):
            response = await inner.handle_async_request(request)
            came = Came(response)
            try:
                headers = await self._wait_async(self._thread.submit(_head(found.side, came)))
            except BaseException:
                await response.aclose()
                raise
        if headers is None:
            self._lost(found.side)
            return response
        passing = Passing(self._thread, found.side, response.stream, package, framed=came.framed)
        stream = package.async_stream(passing.async_pieces(), passing.aclose)
        return _passed(package, response, headers, stream)

    @contextmanager
    def _leaving(self, side: Side) -> Iterator[None]:
        """Where no answer comes, the cache is told; what was raised is the caller's."""
        try:
            yield
        except BaseException:
            self._lost(side)
            raise

    def _lost(self, side: Side) -> None:
        """Of this answer the cache keeps nothing.

        So it is, too, where the cache did not read the head in time: it may yet do so, and would
        take what comes then for the whole.
        """
        self._thread.tell(partial(side.broken, Reason.INCOMPLETE))

    def close(self) -> None:
        """End the cache's thread, after what is under way is kept (2 s at most), and `inner`."""
        self._closing()
        for inner in self._inners():
            if hasattr(inner, "close"):
                inner.close()

    async def aclose(self) -> None:
        """The same for an AsyncClient."""
        if _on_asyncio():
            await asyncio.to_thread(self._closing)
        self._closing()  # nothing happens to what is closed
        for inner in self._inners():
            if hasattr(inner, "aclose"):
                await inner.aclose()
            elif hasattr(inner, "close"):
                inner.close()

    def _inners(self) -> list[Any]:
        return [*self._made.values()] if self._inner is None else [self._inner]

    def _call(self, package: Package, *, asynchronous: bool) -> Any:
        if self._inner is not None:
            return self._inner
        which = (package, asynchronous)
        # No lock, since a fork could leave it locked: of two that are made at once one is dropped.
        if which not in self._made:
            make = package.async_transport if asynchronous else package.transport
            self._made.setdefault(which, make())
        return self._made[which]

    def _question(
        self, request: Any, package: Package
    ) -> Coroutine[Any, Any, Whole | Onward] | None:
        """What to ask the cache; None for what is none of its own."""
        cache = self._thread.cache
        if cache is None:
            return None
        with cache.guard:
            return self._asked(cache, request, package)
        return None

    def _asked(
        self, cache: Cache, request: Any, package: Package
    ) -> Coroutine[Any, Any, Whole | Onward] | None:
        if request.method != "POST" or not cache.wants_body or _sent_elsewhere(request):
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
            await asyncio.wait([awaited(answer)], timeout=self._patience)
        finally:
            answer.cancel()  # nothing happens to one that is done
        return _result(answer)


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _sent_elsewhere(request: Any) -> bool:
    """The URL does not name the upstream: two of them would share one name, and their answers."""
    netloc = request.url.netloc.decode("ascii")
    host = request.headers.get("host", netloc)
    return host.lower() != netloc.lower() or "target" in request.extensions


def _result(answer: Future[_T]) -> _T | None:
    if answer.cancel():  # it was not done
        return None
    bug = answer.exception()
    if bug is None:
        return answer.result()
    log.error("a bug in cachesvc, %s; the call goes on without it", type(bug).__name__)
    return None


async def _head(side: Side, came: Came) -> RawHeaders:
    """On the core's loop, since what a side learns belongs to it."""
    return side.head(came)


def _passed(package: Package, response: Any, headers: RawHeaders, stream: Any) -> Any:
    """The inner transport's response with our headers, and watched."""
    return package.Response(
        response.status_code,
        headers=list(headers),
        stream=stream,
        extensions=response.extensions,
    )
