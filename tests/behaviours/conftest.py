"""On uvloop, as in production; a database for each file, emptied for each test."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.pgbouncer import pgbouncer
from tests.postgres import _TEMPLATE, _own_database
from tests.proxy.conftest import pytest_asyncio_loop_factories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.store.embedded import EmbeddedPostgres

__all__ = ["pytest_asyncio_loop_factories"]

_TABLES = """SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'"""


@pytest.fixture(scope="module")
def files_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a migrated database of this file's own: copying one takes longer than a test."""
    yield from _own_database(postgres, _TEMPLATE)


@pytest.fixture(scope="module")
def way_in(files_database_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL that the service gets: straight there, or with --pgbouncer through PgBouncer."""
    if not request.config.getoption("--pgbouncer"):
        yield files_database_url
        return
    with pgbouncer(files_database_url) as url:
        yield url


@pytest.fixture
def database_url(files_database_url: str, way_in: str) -> str:
    """The file's database with all its tables emptied: no tenant, no policy, no entry."""
    asyncio.run(_empty(files_database_url))
    return way_in


async def _empty(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetchval(_TABLES)
        await connection.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
    finally:
        await connection.close()
