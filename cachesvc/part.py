"""One part of cachesvc in a process of its own, under a supervisor or by itself.

`python -m cachesvc.part service|proxy|demo` is what `cachesvc up` starts: it reads its settings
as JSON from standard input (so that no secret stands on a command line or in an environment) and
writes one line of JSON to standard output once it accepts. It dies with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import sys
from typing import TYPE_CHECKING

import msgspec
import uvloop

from cachesvc.errors import CacheError
from cachesvc.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

_PR_SET_PDEATHSIG = 1
# Requests leave next to no circles of garbage: at Python's 700 new objects a fourteenth of
# the proxy's time went into looking for them. The second and third are rounds of the one before.
_COLLECTED_AFTER = (20_000, 20, 20)


class Ready(msgspec.Struct):
    """The line a part writes when it accepts: where."""

    urls: list[str]


class Work(msgspec.Struct):
    """What a part reads at its start."""

    settings: Settings
    default_policy: bool = False
    port: int = 0  # of the demo upstream


def run_part(name: str, work: Work, ready: Callable[[list[str]], None]) -> None:
    """Run a part in this process until SIGINT or SIGTERM. Raises CacheError if it cannot start."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s {name} %(levelname)s %(message)s",
    )

    def serving(urls: list[str]) -> None:
        _spare_the_collector()
        ready(urls)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(name, work, serving))


def _spare_the_collector() -> None:
    """What a part is made of stays: never look through it again. This process is ours alone."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED_AFTER)


def _main(name: str, work: Work, ready: Callable[[list[str]], None]) -> Coroutine[Any, Any, None]:
    # Each part imports only what it is: the service no model, the proxy no database driver.
    if name == "service":
        from cachesvc.service.run import serve as serve_service

        return serve_service(work.settings, default_policy=work.default_policy, ready=ready)
    if name == "proxy":
        from cachesvc.proxy.run import serve as serve_proxy

        return serve_proxy(work.settings, ready=ready)
    return _serve_demo(work.port, ready)


async def _serve_demo(port: int, ready: Callable[[list[str]], None]) -> None:
    from cachesvc.demo import DemoUpstream
    from cachesvc.edge.server import Listener, install_stop_signals, run

    stop = asyncio.Event()
    install_stop_signals(asyncio.get_running_loop(), stop)
    listener = Listener(DemoUpstream(), "127.0.0.1", port, "demo upstream")
    await run([listener], stop=stop, ready=ready, grace_seconds=0.5)


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def main() -> None:
    """Entry of `python -m cachesvc.part NAME`."""
    _die_with_parent()
    work = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)

    def say_ready(urls: list[str]) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(Ready(urls)) + b"\n")
        sys.stdout.buffer.flush()

    try:
        run_part(sys.argv[1], work, say_ready)
    except CacheError as exc:
        sys.stderr.write(f"cachesvc {sys.argv[1]}: {exc.message}\n")
        raise SystemExit(2) from exc


if __name__ == "__main__":
    main()
