"""Migrations go up and down, one at a time, and lead to the committed schema."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from cachesvc.errors import CacheError, Invalid, StartError, StoreUnavailable
from cachesvc.store import binaries, schema
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import (
    add_index,
    downgrade,
    migrate_in_subprocess,
    status,
    upgrade,
)
from cachesvc.store.sql import statement_for
from tests.store.dump_schema import COMMITTED, dump
from tests.store.entries import nearest, new, save, unit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.postgres import Stores

INDEXED = (384, 512, 768, 1024, 1536, 3072)
LOCK_KEY = 0x6361636865737663


def with_connection(url: str, use: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await use(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_up_down_up(empty_database_url: str) -> None:
    assert status(empty_database_url).current is None
    upgrade(empty_database_url)
    first = dump(empty_database_url)
    assert status(empty_database_url).complaint is None
    downgrade(empty_database_url, "base")
    found = status(empty_database_url)
    assert (found.current, found.indexed_dimensions) == (None, ())
    assert found.complaint == "the database has no cachesvc schema: run cachesvc migrate"
    tables = with_connection(
        empty_database_url,
        lambda c: c.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"),
    )
    assert [row["tablename"] for row in tables] == ["alembic_version"]
    upgrade(empty_database_url)
    assert dump(empty_database_url) == first


def test_the_committed_schema_is_what_the_migrations_make(database_url: str) -> None:
    assert dump(database_url) == COMMITTED.read_text("utf-8"), (
        "write it anew: python -m tests.store.dump_schema"
    )


def test_the_expected_revision_is_the_one_head_alembic_sees() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_folder()))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [schema.expected_revision()]
    in_order = [script.revision for script in scripts.walk_revisions()][::-1]
    assert tuple(in_order) == schema.known_revisions()


def test_a_database_knows_its_state(database_url: str) -> None:
    found = status(database_url)
    assert found.current == found.expected == schema.expected_revision()
    assert found.indexed_dimensions == INDEXED
    assert found.pgvector


@pytest.mark.parametrize("round", range(2))
def test_five_migrators_at_once_all_succeed(empty_database_url: str, round: int) -> None:
    command = [sys.executable, "-m", "cachesvc.store.migrate"]
    migrators = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(5)
    ]
    for migrator in migrators:
        assert migrator.stdin
        migrator.stdin.write(empty_database_url.encode())
        migrator.stdin.close()
        migrator.stdin = None
    said = [migrator.communicate()[1] for migrator in migrators]
    assert [migrator.returncode for migrator in migrators] == [0] * 5, said
    versions = with_connection(
        empty_database_url, lambda c: c.fetch("SELECT version_num FROM alembic_version")
    )
    assert [row["version_num"] for row in versions] == [schema.expected_revision()]


def test_a_migrator_waits_for_the_one_before_it(empty_database_url: str) -> None:
    async def run() -> None:
        holder = await asyncpg.connect(empty_database_url)
        await holder.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        migration = asyncio.create_task(asyncio.to_thread(upgrade, empty_database_url))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        for _ in range(2000):
            if await holder.fetchval(waiting):
                break
            await asyncio.sleep(0.005)
        assert not migration.done()
        assert await holder.fetchval("SELECT to_regclass('entries')") is None
        await holder.close()
        await migration

    asyncio.run(run())
    assert status(empty_database_url).complaint is None


def test_a_migration_that_fails_leaves_nothing(empty_database_url: str) -> None:
    with_connection(empty_database_url, lambda c: c.execute("CREATE TABLE aliases (n int)"))
    with pytest.raises(StartError, match='relation "aliases" already exists') as caught:
        upgrade(empty_database_url)
    assert "\n" not in caught.value.message
    assert status(empty_database_url).current is None
    found = with_connection(
        empty_database_url, lambda c: c.fetchval("SELECT to_regclass('policies')")
    )
    assert found is None


def test_a_url_keeps_its_parameters_and_may_say_postgres(empty_database_url: str) -> None:
    url = empty_database_url.replace("postgresql://", "postgres://") + "&sslmode=disable"
    upgrade(url)
    assert status(url).complaint is None


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    url = f"postgresql://me:hunter2@/cachesvc?host={tmp_path}"
    attempts: tuple[Callable[[], object], ...] = (
        lambda: upgrade(url),
        lambda: migrate_in_subprocess(url),
        lambda: status(url),
        lambda: asyncio.run(add_index(url, 5)),
    )
    for attempt in attempts:
        with pytest.raises(CacheError) as caught:
            attempt()
        assert "\n" not in caught.value.message
        assert "hunter2" not in caught.value.message


def test_a_server_without_pgvector_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = binaries.installed().parent.parent
    bare = Path(
        shutil.copytree(
            package / "pginstall18",
            tmp_path / "bare" / package.name / "pginstall18",
            symlinks=True,
            ignore=shutil.ignore_patterns("*.a", "include", "vector*"),
        )
    ).parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, bare.parent / libraries.name)
    (bare / "__init__.py").touch()
    monkeypatch.syspath_prepend(bare.parent)
    monkeypatch.setattr(binaries, "OPEN_FOLDER", tmp_path / "open")
    server = EmbeddedPostgres(tmp_path / "data")
    server.start()
    try:
        with pytest.raises(StartError, match=r"no pgvector: install pgvector 0\.8 or newer"):
            upgrade(server.url)
    finally:
        server.stop()


async def test_a_further_number_of_dimensions_can_be_indexed_in_use(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new(vector=unit(1, 100)))
    assert await add_index(stores.url, 100)
    assert not await add_index(stores.url, 100)
    assert not await add_index(stores.url, 384)
    found = await asyncio.to_thread(status, stores.url)
    assert found.indexed_dimensions == (100, *INDEXED)
    assert len((await stores.entries.find_nearest(nearest(unit(1, 100)))).candidates) == 1
    async with stores.database.connection() as connection:
        await connection.execute("SET enable_seqscan = off; SET enable_sort = off")
        rows = await connection.fetch(
            "EXPLAIN SELECT leaf FROM leaves WHERE dimensions = 100 "
            "ORDER BY (centroid || code)::halfvec(116) <=> "
            "(SELECT centroid || code FROM leaves LIMIT 1)::halfvec(116) LIMIT 1"
        )
    assert any("leaves_by_vector_100" in row[0] for row in rows)


async def test_an_index_whose_building_was_broken_off_is_built_again(stores: Stores) -> None:
    await add_index(stores.url, 100)
    await stores.database.row(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'leaves_by_vector_100'::regclass"
    )
    assert (await asyncio.to_thread(status, stores.url)).indexed_dimensions == INDEXED
    assert await add_index(stores.url, 100)
    assert (await asyncio.to_thread(status, stores.url)).indexed_dimensions == (100, *INDEXED)


@pytest.mark.parametrize("dimensions", [0, -1, 3985])
async def test_dimensions_that_cannot_be_indexed_are_refused(
    database_url: str, dimensions: int
) -> None:
    with pytest.raises(Invalid, match="must be 1 to 3,984"):
        await add_index(database_url, dimensions)


async def test_two_indexes_are_not_built_at_once(stores: Stores) -> None:
    async with stores.database.connection() as connection:
        await connection.fetch(statement_for("lock_index", 0), 0x6361636865696478)
        with pytest.raises(StartError, match="another index is being built"):
            await add_index(stores.url, 100)
        await connection.execute("SELECT pg_advisory_unlock_all()")


def test_migrating_in_a_process_of_its_own_is_quick_and_can_be_repeated(database_url: str) -> None:
    started = time.monotonic()
    migrate_in_subprocess(database_url)
    assert time.monotonic() - started < 20
    with pytest.raises(StartError, match="did not end within 0 s"):
        migrate_in_subprocess(database_url, timeout_seconds=0.01)
    with pytest.raises(StoreUnavailable):
        status(database_url.replace("@/", "@/no_such_"))
