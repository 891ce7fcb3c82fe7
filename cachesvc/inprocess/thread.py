"""The cache's core on an event loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from cachesvc.proxy.core import check_secret, make_embedders, running_core

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from cachesvc.proxy.cache import Cache
    from cachesvc.proxy.core import Core
    from cachesvc.settings import Settings

_T = TypeVar("_T")
_P = ParamSpec("_P")

_WARM_WITHIN_SECONDS = 5.0
_CLOSE_SECONDS = 5.0


class _Threads(ThreadPoolExecutor):
    """The loop's threads. An interpreter that ends refuses them before it lets us end."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            # No call is held up any more, so what is left is done here.
            done: Future[_T] = Future()
            done.set_result(fn(*args, **kwargs))
            return done


class CoreThread:
    """Starts the core and keeps it until `close`. Callers are in other threads."""

    def __init__(self, settings: Settings) -> None:
        """Returns once the core is warm, or after 5 s. Raises ConfigError and StartError."""
        check_secret(settings)
        self._settings = settings
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._core: Core | None = None
        self._failure: BaseException | None = None
        self._started = threading.Event()
        # A daemon: an application that forgets to close must be able to end.
        self._thread = threading.Thread(target=self._run, name="cachesvc", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def cache(self) -> Cache | None:
        """None where there is none: closed, or in a process forked off the one that has it."""
        alive = self._thread.is_alive() and os.getpid() == self._process
        return self._core.cache if self._core is not None and alive else None

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T] | None:
        """Begin `work` on the core's loop; None, and nothing begun, where there is none."""
        if self.cache is not None and self._loop is not None:
            try:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
            except RuntimeError:  # closed between two looks
                pass
        work.close()
        return None

    def tell(self, what: Callable[[], None]) -> None:
        """Run `what` on the core's loop, soon; nothing happens where there is none any more."""
        if self.cache is None or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            return

    def close(self) -> None:
        """Keep what is under way, within bounds, and end the thread."""
        if self.cache is not None and self._loop is not None and self._stop is not None:
            self.tell(self._stop.set)
            # The garbage collector may close a transport in any thread, this one too.
            if threading.current_thread() is not self._thread:
                self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            # Told by the constructor; afterwards the cache is gone and every call goes on without.
            self._failure = exc
        finally:
            self._core = None
            self._started.set()

    async def _main(self) -> None:
        threads = _Threads(thread_name_prefix="cachesvc")
        asyncio.get_running_loop().set_default_executor(threads)
        embedders = await make_embedders(self._settings)
        async with running_core(self._settings, embedders) as core:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await core.settle(_WARM_WITHIN_SECONDS)
            self._core = core
            self._started.set()
            await self._stop.wait()
