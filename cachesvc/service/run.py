"""`cachesvc serve`: opens the store, answers until it is told to stop, closes everything.

A database that is away stops nothing: calls are answered with 503 until it is back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from cachesvc.config_checks import split_listen
from cachesvc.core.policy import Policy
from cachesvc.edge.limits import Limits
from cachesvc.edge.server import Listener, ServerTLS, install_stop_signals
from cachesvc.edge.server import run as run_server
from cachesvc.errors import ConfigError, StoreError
from cachesvc.service.app import create_app, create_open_app
from cachesvc.service.faults import FaultLog, describe, log
from cachesvc.service.hot import HotGauges
from cachesvc.service.identity import LOCAL, Identities
from cachesvc.service.leaves import LeafGauges, tend_leaves
from cachesvc.service.replicas import ReplicaGauges
from cachesvc.service.sweep import reap
from cachesvc.service.telemetry import Telemetry
from cachesvc.service.together import TogetherCounts
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.hosts import each_host
from cachesvc.store.hot import HotStore
from cachesvc.store.notices import Notices
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.postgres_records import PostgresRecords
from cachesvc.store.replicas import Replica, ReplicaReads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cachesvc.service.app import App
    from cachesvc.settings import Service, Settings
    from cachesvc.store.base import AdminStore
    from cachesvc.store.layers import LayeredStore
    from cachesvc.store.pool import Database

DEFAULT_POLICY = "default"
ADMIN_LISTEN = "127.0.0.1:8702"
_GRACE_SECONDS = 2.5
_DRAIN_SECONDS = 0.5
_RETRY_SECONDS = 0.5
_FIRST_POLICY_SECONDS = 2.0


async def serve(
    settings: Settings,
    *,
    default_policy: bool = False,
    ready: Callable[[list[str]], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set, or SIGINT or SIGTERM come where no `stop` is given.

    `default_policy` creates the policy `default` unless there ever was one. `ready` gets the URLs.
    Raises StartError and ConfigError.
    """
    if stop is None:
        stop = asyncio.Event()
        install_stop_signals(asyncio.get_running_loop(), stop)
    database = await _open(settings.service)
    store, admin = PostgresStore(database), PostgresAdmin(database)
    notices = open_notices(settings.service, database)
    replicas = await _open_replicas(settings.service, store, database, notices)
    hot = hot_store(settings.service, replicas or store, notices)
    served = hot or replicas or store
    records, telemetry = PostgresRecords(database), Telemetry(settings)
    identities = Identities(settings.identity, settings.service.tls.on)
    background = [
        _in_background(reap(settings, admin, records, telemetry)),
        _in_background(tend_leaves(database, store.growing)),
    ]
    telemetry.registry.register(LeafGauges(store.growing))
    read_from = [] if replicas is None else [one.database for one in replicas.replicas]
    telemetry.registry.register(TogetherCounts([each.lookups for each in (database, *read_from)]))
    app = create_app(settings, served, admin, records, identities, telemetry)
    if hot is not None:
        telemetry.registry.register(HotGauges(hot))
    if replicas is not None:
        background.append(_in_background(replicas.run()))
        telemetry.registry.register(ReplicaGauges(replicas))
    if served is not store:
        background.append(_in_background(notices.run(served.heard)))
    if default_policy:
        made = _in_background(_create_default_policy(admin))
        background.append(made)
        # There before the first caller is, unless the database is away.
        await asyncio.wait((made,), timeout=_FIRST_POLICY_SECONDS)
    try:
        await run_server(
            _listeners(settings, app, admin, telemetry),
            stop=stop,
            ready=ready,
            grace_seconds=_GRACE_SECONDS,
            limits=Limits(
                max_connections=settings.service.max_connections,
                body_seconds=settings.service.body_idle_seconds,
            ),
        )
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await app.drain(_DRAIN_SECONDS)
        if hot is not None:
            await hot.close()
        await database.close()
        if replicas is not None:
            await asyncio.gather(*(each.close() for each in read_from))


async def _open(service: Service) -> Database:
    if not service.database_url:
        raise ConfigError("service.database_url: is required")
    return await _connect(service, service.database_url)


async def _connect(service: Service, url: str) -> Database:
    return await connect(
        url,
        size=service.database_pool_size,
        statement_timeout_ms=service.statement_timeout_ms,
        pooled=service.pooler == "transaction",
    )


async def _open_replicas(
    service: Service, store: PostgresStore, primary: Database, notices: Notices
) -> ReplicaReads | None:
    if not service.read_database_url:
        return None
    found = []
    for url in each_host(service.read_database_url):
        database = await _connect(service, url)
        found.append(Replica(database, PostgresStore(database, growing=store.growing)))
    return ReplicaReads(store, primary, found, notices, lag_seconds=service.read_lag_seconds)


def open_notices(service: Service, database: Database) -> Notices:
    """What is written through `database`, heard where the settings say."""
    return Notices(service.listen_url or service.database_url, database)


def hot_store(service: Service, store: LayeredStore, notices: Notices) -> HotStore | None:
    """The store with its hot tier, unless that is switched off."""
    # What the loop multiplies takes microseconds; waiting for threads to join took milliseconds.
    threadpool_limits(1, user_api="blas")
    if not service.hot_bytes or not service.hot_ttl_seconds:
        return None
    return HotStore(
        store,
        notices,
        most_bytes=service.hot_bytes,
        ttl_seconds=service.hot_ttl_seconds,
    )


def _in_background(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    def report(done: asyncio.Task[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            log.error("a task in the background failed: %s", describe(error))

    task = asyncio.create_task(work)
    task.add_done_callback(report)
    return task


async def _create_default_policy(admin: AdminStore) -> None:
    faults = FaultLog("creating the policy default")
    while True:
        try:
            await admin.create_policy_once(LOCAL.tenant, DEFAULT_POLICY, Policy())
        except StoreError as exc:
            faults.failed(exc.message)
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return


def _listeners(
    settings: Settings, app: App, admin: AdminStore, telemetry: Telemetry
) -> list[Listener]:
    service = settings.service
    host, port = split_listen("service.listen", service.listen)
    if not service.tls.on:
        return [Listener(app, host, port, "service.listen")]
    tls = ServerTLS(service.tls.cert_file, service.tls.key_file, service.tls.client_ca_file)
    open_host, open_port = split_listen(
        "service.admin_listen", service.admin_listen or ADMIN_LISTEN
    )
    return [
        Listener(app, host, port, "service.listen", tls),
        Listener(
            create_open_app(settings, admin, telemetry),
            open_host,
            open_port,
            "service.admin_listen",
        ),
    ]
