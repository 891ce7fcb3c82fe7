"""The routes of the service, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route, Router

from cachesvc.service.admin import Admin
from cachesvc.service.behind import behind
from cachesvc.service.bounds import Bounds
from cachesvc.service.endpoint import Endpoint, Guard, Nowhere, OpenEndpoint
from cachesvc.service.entries import Entries
from cachesvc.service.feedback import Feedback
from cachesvc.service.health import Health
from cachesvc.service.lookup import Lookup
from cachesvc.service.openapi import OpenAPI, paths_of
from cachesvc.service.policies import Policies
from cachesvc.service.put import Put

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from cachesvc.service.behind import Behind
    from cachesvc.service.endpoint import Handler, OpenHandler
    from cachesvc.service.exchange import Call, Reply
    from cachesvc.service.identity import Identities
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.settings import Settings
    from cachesvc.store.base import AdminStore
    from cachesvc.store.layers import LayeredStore
    from cachesvc.store.records import RecordStore

    Settled = Callable[[], Awaitable[None]]


class App:
    """An ASGI app. Call `drain` before the store it works on is closed."""

    # A hit from memory waits for nothing, and needs no task (edge/at_once.py).
    at_once = frozenset(paths_of("/cache/lookup"))

    def __init__(self, routes: list[Route], guard: Guard, behind: Behind | None = None) -> None:
        self.routes = routes
        self._router = Router(routes, redirect_slashes=False, default=Nowhere(guard))
        self._behind = behind
        # The hot paths have no parameters: a look at a dict finds them, not a row of patterns.
        self._plain = {route.path: route.app for route in routes if "{" not in route.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = self._plain.get(scope["path"]) if scope["type"] == "http" else None
        if plain is None or scope.get("root_path"):
            await self._router(scope, receive, send)
        else:
            scope["path_params"] = {}
            await plain(scope, receive, send)

    async def drain(self, seconds: float) -> None:
        """Let what is written off the reply path end, for so long at most."""
        if self._behind is not None:
            await self._behind.drain(seconds)


def create_app(
    settings: Settings,
    store: LayeredStore,
    admin: AdminStore,
    records: RecordStore,
    identities: Identities,
    telemetry: Telemetry,
) -> App:
    """The main listener's app: /cache/*, /dp/cache/*, administration; without TLS all of it."""
    guard = Guard(settings, telemetry)
    bounds = Bounds.of_pool(settings.service)
    policies = Policies(store)
    off_path = behind(settings, store, admin, records, telemetry)
    lookup = Lookup(store, policies, off_path, telemetry, bounds)
    put = Put(store, policies, off_path.limits, telemetry, bounds)
    entries = Entries(admin, telemetry, bounds)
    operator = Admin(admin, policies, off_path.limits, telemetry, bounds)
    changed = _after(store.settled)
    handlers: dict[str, dict[str, Handler]] = {
        "/cache/lookup": {"POST": lookup},
        "/cache/put": {"POST": put},
        "/cache/purge": {"POST": changed(operator.purge)},
        "/cache/feedback": {"POST": changed(Feedback(records, telemetry, bounds))},
        "/cache/entries": {"GET": entries.list},
        "/cache/entries/{entry_id}": {"GET": entries.get, "DELETE": changed(entries.delete)},
        "/policies": {"GET": operator.list_policies},
        "/policies/{policy_id}": {
            "GET": operator.get_policy,
            "PUT": changed(operator.put_policy),
            "DELETE": changed(operator.delete_policy),
        },
        "/stats": {"GET": operator.stats},
    }
    routes = [
        Route(path, Endpoint(guard, identities, methods))
        for pattern, methods in handlers.items()
        for path in paths_of(pattern)
    ]
    if not settings.service.tls.on:
        routes += _open_routes(settings, admin, telemetry, guard)
    return App(routes, guard, off_path)


def _after(settled: Settled) -> Callable[[Handler], Handler]:
    """Handlers that reply when their change is known everywhere in this process."""

    def wrapped(handler: Handler) -> Handler:
        async def settling(call: Call) -> Reply:
            try:
                return await handler(call)
            finally:
                # Also after a failure: half of a purge may be done.
                await settled()

        return settling

    return wrapped


def create_open_app(settings: Settings, admin: AdminStore, telemetry: Telemetry) -> App:
    """The admin listener's app under TLS: what anybody may read."""
    guard = Guard(settings, telemetry)
    return App(_open_routes(settings, admin, telemetry, guard), guard)


def _open_routes(
    settings: Settings, admin: AdminStore, telemetry: Telemetry, guard: Guard
) -> list[Route]:
    health = Health(settings, admin, telemetry)
    handlers: dict[str, OpenHandler] = {
        "/livez": health.livez,
        "/readyz": health.readyz,
        "/metrics": health.metrics,
        "/openapi.json": OpenAPI(),
    }
    return [Route(path, OpenEndpoint(guard, handler)) for path, handler in handlers.items()]
