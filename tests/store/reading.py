"""Lookups from a real streaming replica, which can be made to fall behind."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cachesvc.core.policy import Policy
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.notices import Notices
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.replicas import Replica, ReplicaReads
from tests.postgres import POLICY, TENANT
from tests.replication import ask_server
from tests.store.entries import exact
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesvc.store.hot import HotStore
    from tests.replication import Pair

LAG_SECONDS = 1.5
LONG_SECONDS = 60.0


@asynccontextmanager
async def reading(
    pair: Pair, lag_seconds: float = LAG_SECONDS
) -> AsyncIterator[tuple[ReplicaReads, PostgresAdmin, PostgresAdmin]]:
    """Reads of a service, its admin, and the admin of another service on the same database."""
    databases = [await connect(url) for url in (pair.primary.url, pair.replica.url)]
    elsewhere = await connect(pair.primary.url)
    primary, other = databases
    replica = Replica(other, PostgresStore(other))
    notices = Notices(pair.primary.url, primary)
    reads = ReplicaReads(
        PostgresStore(primary), primary, [replica], notices, lag_seconds=lag_seconds
    )
    following = asyncio.create_task(reads.run())
    try:
        admin = PostgresAdmin(primary)
        await admin.save_policy(TENANT, POLICY, Policy())
        await reads.policy(TENANT, POLICY)
        yield reads, admin, PostgresAdmin(elsewhere)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        for database in (*databases, elsewhere):
            await database.close()
        await ask_server(pair.primary.url, "TRUNCATE entries, aliases, policies CASCADE")


@asynccontextmanager
async def hearing(store: ReplicaReads | HotStore) -> AsyncIterator[Notices]:
    """The store is told of every change."""
    notices = store.notices
    listening = asyncio.create_task(notices.run(store.heard))

    async def trusted() -> bool:
        return notices.holds

    await until(trusted)
    try:
        yield notices
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def fresh(reads: ReplicaReads) -> None:
    """Wait until a lookup is answered by the replica."""

    async def read() -> bool:
        before = reads.replicas[0].reads
        await reads.find_exact(exact("nothing"))
        return reads.replicas[0].reads > before

    await until(read)


@asynccontextmanager
async def behind(pair: Pair) -> AsyncIterator[None]:
    """The replica replays nothing meanwhile."""
    await ask_server(pair.replica.url, "SELECT pg_wal_replay_pause()::text")
    try:
        yield
    finally:
        await ask_server(pair.replica.url, "SELECT pg_wal_replay_resume()::text")


async def held_by_the_replica(reads: ReplicaReads) -> bool:
    """Whether it would still answer: else a test could not fail."""
    return bool((await reads.replicas[0].store.find_exact(exact("a"))).candidates)
