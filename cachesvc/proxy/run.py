"""`cachesvc proxy`: the cache behind a listener of its own, in front of one upstream."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from cachesvc.config_checks import split_listen
from cachesvc.dialects.table import DIALECTS
from cachesvc.edge.limits import Limits
from cachesvc.edge.server import Listener, install_stop_signals
from cachesvc.edge.server import run as run_server
from cachesvc.proxy.app import ProxyApp
from cachesvc.proxy.core import check_secret, make_embedders, running_core
from cachesvc.proxy.flights import Flights
from cachesvc.proxy.relay import Relay
from cachesvc.proxy.transport import Transport
from cachesvc.proxy.tunnel import Tunnels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cachesvc.proxy.core import Core
    from cachesvc.settings import Settings

_WARM_WITHIN_SECONDS = 5.0
_GRACE_SECONDS = 2.5


async def serve(
    settings: Settings,
    *,
    ready: Callable[[list[str]], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set, or SIGINT or SIGTERM come where no `stop` is given.

    `ready` gets the URL. Raises ConfigError and StartError.
    """
    if stop is None:
        stop = asyncio.Event()
        install_stop_signals(asyncio.get_running_loop(), stop)
    check_secret(settings)
    embedders = await make_embedders(settings)
    async with running_core(settings, embedders) as core, _in_front(settings, core) as app:
        await core.settle(_WARM_WITHIN_SECONDS)
        host, port = split_listen("proxy.listen", settings.proxy.listen)
        listener = Listener(app, host, port, "proxy.listen", refusal=_refusal, handovers=True)
        await run_server(
            [listener],
            stop=stop,
            ready=ready,
            grace_seconds=_GRACE_SECONDS,
            limits=_limits(settings),
        )


@asynccontextmanager
async def _in_front(settings: Settings, core: Core) -> AsyncIterator[ProxyApp]:
    """The application between a listener and the upstream; leaving breaks off what is open."""
    proxy = settings.proxy
    waits = {
        "connect_seconds": proxy.upstream_connect_seconds,
        "idle_seconds": proxy.upstream_idle_seconds,
    }
    async with AsyncExitStack() as stack:
        relay = Relay(proxy.upstream, **waits)
        stack.push_async_callback(relay.close)
        flights = Flights(core.guard)
        stack.push_async_callback(flights.close)
        transport = Transport(
            core.cache,
            relay,
            flights,
            core.telemetry,
            max_request_bytes=proxy.max_request_bytes,
        )
        tunnels = Tunnels(proxy.upstream, DIALECTS, **waits)
        yield ProxyApp(transport, tunnels, core.telemetry, core.missing)


def _limits(settings: Settings) -> Limits:
    # Heads above what upstreams take (nginx 32 KiB, Envoy 60 KiB): it is theirs to refuse. Bodies
    # may come as slowly as they like, since uploads do.
    return Limits(
        max_headers=256,
        max_head_bytes=64 * 1024,
        body_seconds=None,
        max_connections=settings.proxy.max_connections,
    )


def _refusal(status: int, message: str) -> bytes:
    code = {400: "bad_request", 408: "request_timeout", 503: "overloaded"}.get(
        status, "headers_too_large"
    )
    return DIALECTS[0].error(status, code, message)
