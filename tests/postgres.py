"""A real Postgres for tests: one embedded server, a fresh copy of a migrated database for each."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import pytest
import pytest_asyncio

from cachesvc.core.policy import Policy
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import migrate_in_subprocess
from cachesvc.store.pool import Database, connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.postgres_records import PostgresRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

TENANT, POLICY = "acme", "support"
_TEMPLATE = "migrated"
_names = (f"test_{number}" for number in count(1))
# Databases of tests need not survive a power cut.
_FAST = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_connections": "100"}


class Stores(NamedTuple):
    """The ports on one database, and the pool they share."""

    entries: PostgresStore
    admin: PostgresAdmin
    database: Database
    url: str
    records: PostgresRecords


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The embedded server of this test run, with the migrated template."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), settings=_FAST)
    server.start()
    try:
        _execute(server.url, f"CREATE DATABASE {_TEMPLATE}")
        migrate_in_subprocess(server.url_of(_TEMPLATE))
        yield server
    finally:
        server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A migrated server that this test may maltreat: freeze, kill, fill."""
    server = EmbeddedPostgres(tmp_path / "data")
    server.start()
    try:
        migrate_in_subprocess(server.url)
        yield server
    finally:
        server.stop()


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database of this test's own without any table."""
    yield from _own_database(postgres, "template0")


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a migrated database of this test's own: no tenant, no policy, no entry."""
    yield from _own_database(postgres, _TEMPLATE)


@pytest_asyncio.fixture
async def stores(database_url: str) -> AsyncIterator[Stores]:
    """An empty store of this test's own."""
    database = await connect(database_url, size=8, statement_timeout_ms=5000)
    try:
        yield Stores(
            PostgresStore(database),
            PostgresAdmin(database),
            database,
            database_url,
            PostgresRecords(database),
        )
    finally:
        await database.close()


@pytest_asyncio.fixture
async def store(stores: Stores) -> tuple[PostgresStore, PostgresAdmin]:
    """Both ports, with one policy: `support` of tenant `acme`, shared, everything else default."""
    await stores.admin.save_policy(TENANT, POLICY, Policy(sharing="shared"))
    return stores.entries, stores.admin


def _own_database(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = next(_names)
    _execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield postgres.url_of(name)
    _execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())
