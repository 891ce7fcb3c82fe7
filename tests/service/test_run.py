"""The service as a process: a database that is away, frozen or busy, and a clean stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.service.app import create_app
from cachesvc.service.run import serve
from cachesvc.service.sweep import reap
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Service, Settings
from cachesvc.store.base import NewEntry, Place
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import migrate_in_subprocess
from cachesvc.store.records import NewVerdict
from tests.postgres import POLICY, TENANT, Stores
from tests.service.serving import KEY, NOWHERE, Named, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cachesvc.store.admin import PostgresAdmin
    from cachesvc.store.postgres import PostgresStore

LOOKUP = {"policy_id": "default", "exact_key": KEY, "scope": "me"}
PUT = {**LOOKUP, "response": {"a": 1}}
TIMEOUT_MS = 500


@asynccontextmanager
async def served(
    url: str, *, default_policy: bool = True, **service: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `serve()`, which runs beside the test in its event loop."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    listen = Service(listen="127.0.0.1:0", database_url=url, **service)
    serving = asyncio.create_task(
        serve(
            Settings(service=listen),
            default_policy=default_policy,
            ready=ready.set_result,
            stop=stop,
        )
    )
    (base,) = await asyncio.wait_for(ready, 10)
    try:
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=20) as client:
            yield client
    finally:
        stop.set()
        await asyncio.wait_for(serving, 10)


async def until(client: httpx.AsyncClient, path: str, status: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while (await client.get(path)).status_code != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that tests may stop and freeze."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("own"), settings={"fsync": "off"})
    server.start()
    migrate_in_subprocess(server.url)
    yield server
    server.stop()


async def test_a_database_that_is_away_stops_nothing(own_postgres: EmbeddedPostgres) -> None:
    own_postgres.stop()
    async with served(own_postgres.url) as client:
        assert (await client.get("/livez")).json() == {"status": "alive"}
        message = refused(await client.get("/readyz"), 503, "UNAVAILABLE", "database")
        assert "\n" not in message
        for path, body in (("/cache/lookup", LOOKUP), ("/cache/put", PUT)):
            reply = await client.post(path, json=body)
            refused(reply, 503, "UNAVAILABLE")
            assert reply.headers["retry-after"] == "1"
        own_postgres.start()
        await until(client, "/readyz", 200)
        await until(client, "/policies/default", 200)
        assert (await client.post("/cache/put", json=PUT)).json()["stored"] is True
        assert (await client.post("/cache/lookup", json=LOOKUP)).json()["hit"] is True
        own_postgres.stop()
        refused(await client.post("/cache/lookup", json=LOOKUP), 503, "UNAVAILABLE")
        own_postgres.start()
        await until(client, "/readyz", 200)
        assert (await client.post("/cache/lookup", json=LOOKUP)).json()["hit"] is True


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """All processes of a server stopped, and let go again."""
    assert server.pid is not None
    pids = [server.pid]
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == server.pid:
            pids.append(int(status.parent.name))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_a_frozen_database_costs_a_caller_no_more_than_the_deadline(
    own_postgres: EmbeddedPostgres,
) -> None:
    # Nothing from memory, which a frozen database does not hold up at once.
    async with served(own_postgres.url, statement_timeout_ms=TIMEOUT_MS, hot_bytes=0) as client:
        await until(client, "/policies/default", 200)
        await client.post("/cache/lookup", json=LOOKUP)
        with frozen(own_postgres):
            took = []
            for path, body in (("/cache/lookup", LOOKUP), ("/cache/put", PUT)) * 2:
                began = time.monotonic()
                refused(await client.post(path, json=body), 503, "UNAVAILABLE")
                took.append(time.monotonic() - began)
            began = time.monotonic()
            refused(await client.get("/readyz"), 503, "UNAVAILABLE")
            assert time.monotonic() - began < 1.5
            assert (await client.get("/livez")).status_code == 200
        assert min(took) > TIMEOUT_MS / 1000 - 0.05
        assert sorted(took)[1] < TIMEOUT_MS / 1000 + 0.2
        assert max(took) < TIMEOUT_MS / 1000 + 0.5
        await until(client, "/policies/default", 200, seconds=5)


async def test_a_frozen_database_is_told_from_a_quiet_one_within_a_second(
    own_postgres: EmbeddedPostgres,
) -> None:
    async with served(own_postgres.url, statement_timeout_ms=TIMEOUT_MS) as client:
        await until(client, "/policies/default", 200)
        await client.post("/cache/put", json=PUT)
        await until_hot(client)
        with frozen(own_postgres):
            await asyncio.sleep(1.0)  # nobody knows by now what others have purged meanwhile
            refused(await client.post("/cache/lookup", json=LOOKUP), 503, "UNAVAILABLE")


async def until_hot(client: httpx.AsyncClient) -> None:
    """Ask until an answer has come from memory."""
    async with asyncio.timeout(10):
        while 'hot_hits_total{tier="exact"} 0.0' in (await client.get("/metrics")).text:
            assert (await client.post("/cache/lookup", json=LOOKUP)).json()["hit"]


async def test_a_stop_is_bounded_while_the_database_is_frozen(
    own_postgres: EmbeddedPostgres,
) -> None:
    with frozen(own_postgres):
        began = time.monotonic()
        async with served(own_postgres.url) as client:
            late = asyncio.create_task(client.post("/cache/lookup", json=LOOKUP))
            await asyncio.wait({late}, timeout=0.2)
        assert time.monotonic() - began < 5.5
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)


async def test_more_callers_than_may_wait_are_told_to_come_back(database_url: str) -> None:
    async with served(database_url, database_pool_size=2, statement_timeout_ms=400) as client:
        await until(client, "/policies/default", 200)
        holder = await asyncpg.connect(database_url)
        async with holder.transaction():
            await holder.execute("LOCK TABLE policies")
            calls = [client.post("/cache/lookup", json=LOOKUP) for _ in range(40)]
            replies = await asyncio.gather(*calls)
        await holder.close()
        codes = [reply.json()["error"]["code"] for reply in replies]
        assert codes.count("BUSY") == 40 - 2 * 5
        assert codes.count("UNAVAILABLE") == 2 * 5
        assert {reply.headers["retry-after"] for reply in replies} == {"1"}
        assert (await client.post("/cache/lookup", json=LOOKUP)).status_code == 200


async def test_the_default_policy_is_made_once(database_url: str) -> None:
    async with served(database_url, default_policy=False) as client:
        assert (await client.get("/policies")).json() == {"policies": []}
    async with served(database_url) as client:
        await until(client, "/policies/default", 200)
        assert (await client.delete("/policies/default")).status_code == 204
    async with served(database_url) as client:
        assert (await client.put("/policies/other", json={})).status_code == 201
        listed = (await client.get("/policies")).json()["policies"]
        assert [policy["id"] for policy in listed] == ["other"]


async def test_draining_waits_for_an_alias_on_its_way(
    stores: Stores, store: tuple[PostgresStore, PostgresAdmin]
) -> None:
    settings = Settings()
    app = create_app(settings, *store, stores.records, Named(), Telemetry(settings))
    put = {"policy_id": POLICY, "exact_key": KEY, "embedding": [1.0, 0.0], "response": 1}
    near = {"policy_id": POLICY, "exact_key": "cd" * 32, "embedding": [0.99, 0.1]}
    holder = await asyncpg.connect(stores.url)
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://localhost",
        headers={"x-test-caller": TENANT},
    )
    async with client, holder.transaction():
        entry = (await client.post("/cache/put", json=put)).json()["entry_id"]
        await holder.execute("LOCK TABLE aliases")
        hit = await client.post("/cache/lookup", json={**near, "after_exact": True})
        assert hit.json()["tier"] == "semantic"
        draining = asyncio.create_task(app.drain(5))
        await asyncio.wait({draining}, timeout=0.05)
        assert not draining.done()
    await draining
    found = await stores.admin.entry(TENANT, UUID(entry))
    assert found is not None
    assert found.aliases == 1
    await holder.close()


async def test_what_is_expired_is_removed_and_counted(
    stores: Stores, store: tuple[PostgresStore, PostgresAdmin]
) -> None:
    entries, admin = store
    place = Place(TENANT, POLICY, "")
    for number in range(3):
        key = bytes([number]) * 32
        await entries.put(NewEntry(place, Answer(b"1", None), exact_key=key, ttl_seconds=60))
    async with stores.database.connection() as connection:
        await connection.execute("UPDATE entries SET exact_expires_at = now() - interval '1 day'")
    telemetry = Telemetry(Settings())
    reaper = asyncio.create_task(reap(Settings(), admin, stores.records, telemetry, every=0.01))
    labels, deadline = {"cause": "expired"}, time.monotonic() + 5
    while telemetry.registry.get_sample_value("cachesvc_evictions_total", labels) != 3:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert (await admin.counts(TENANT))[0].entries == 0
    reaper.cancel()
    await asyncio.gather(reaper, return_exceptions=True)


async def test_a_database_that_is_away_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(NOWHERE, default_policy=False) as client:
        for _ in range(5):
            await client.post("/cache/lookup", json=LOOKUP)
    told = [record.getMessage() for record in caplog.records if record.name == "cachesvc.service"]
    assert len([line for line in told if line.startswith("database: ")]) == 1
    assert len(told) == len(set(told))


async def test_what_is_over_a_limit_and_old_records_are_swept(stores: Stores) -> None:
    """Nobody puts any more, and no replica remembers that there was something to do."""
    await stores.admin.save_policy(TENANT, POLICY, Policy(sharing="shared", max_entries=2))
    place, entry_id = Place(TENANT, POLICY, ""), None
    for number in range(5):
        key = bytes([number]) * 32
        stored = await stores.entries.put(NewEntry(place, Answer(b"1", None), exact_key=key))
        entry_id = stored.entry_id
    assert entry_id
    old = NewVerdict(TENANT, entry_id, None, wrong=False, source="me", lifts=False)
    await stores.records.give_verdict(old)
    async with stores.database.connection() as connection:
        await connection.execute("UPDATE verdicts SET created_at = now() - interval '401 days'")
    telemetry = Telemetry(Settings())
    reaper = asyncio.create_task(
        reap(Settings(), stores.admin, stores.records, telemetry, every=0.01)
    )
    labels, deadline = {"cause": "max_entries"}, time.monotonic() + 5
    left = 1
    while left or telemetry.registry.get_sample_value("cachesvc_evictions_total", labels) != 3:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
        left = (await stores.database.row("SELECT count(*) FROM verdicts"))["count"]
    assert (await stores.admin.counts(TENANT))[0].entries == 2
    reaper.cancel()
    await asyncio.gather(reaper, return_exceptions=True)
