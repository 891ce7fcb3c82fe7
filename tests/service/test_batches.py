"""What is written behind the callers' backs is written once, however the database behaves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from cachesvc.core.model import Answer, Candidate
from cachesvc.core.policy import Policy
from cachesvc.errors import StoreUnavailable
from cachesvc.service.batches import Batches, Terms
from cachesvc.service.hits import _TERMS, Hits
from cachesvc.service.shadow import Shadow
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Settings
from cachesvc.store.base import Place
from cachesvc.store.pool import connect
from cachesvc.store.postgres_records import PostgresRecords
from tests.postgres import POLICY
from tests.relay import Relay
from tests.service.test_shadow import hit
from tests.store.entries import new
from tests.store.waiting import until, waits_for_a_lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from tests.postgres import Stores

FIRST, SECOND = "acme", "globex"  # tenants, in the order in which they are written


class Counting:
    """Hits on a database of its own, with one entry of each of two tenants."""

    def __init__(self, stores: Stores, entries: dict[str, UUID], url: str) -> None:
        self._stores = stores
        self._entries = entries
        self._url = url
        self.telemetry = Telemetry(Settings())

    async def __aenter__(self) -> Counting:
        self._database = await connect(self._url, size=2, statement_timeout_ms=500)
        self.hits = Hits(PostgresRecords(self._database), self.telemetry)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hits.drain(5)
        await self._database.close()

    def saw(self, tenant: str, times: int) -> None:
        now = datetime.now(timezone.utc)
        for _ in range(times):
            self.hits.saw(tenant, Candidate(self._entries[tenant], Answer(b"", None, 2), now, now))

    async def written(self, **expected: int) -> bool:
        rows = await self._stores.database.rows("SELECT tenant, hits, tokens_saved FROM hit_counts")
        assert all(row["tokens_saved"] == 2 * row["hits"] for row in rows)
        return {row["tenant"]: row["hits"] for row in rows} == expected

    def lost(self) -> float:
        value = self.telemetry.registry.get_sample_value(
            "cachesvc_fail_open_total", {"cause": "hits"}
        )
        return value or 0.0


async def counting(stores: Stores, url: str | None = None) -> Counting:
    entries = {}
    for tenant in (FIRST, SECOND):
        await stores.admin.save_policy(tenant, POLICY, Policy(sharing="shared"))
        put = await stores.entries.put(new("a", place=Place(tenant, POLICY, "shared")))
        assert put.entry_id
        entries[tenant] = put.entry_id
    return Counting(stores, entries, url or stores.url)


@asynccontextmanager
async def locked(stores: Stores, query: str) -> AsyncIterator[None]:
    holder = await asyncpg.connect(stores.url)
    try:
        async with holder.transaction():
            await holder.execute(query)
            yield
    finally:
        await holder.close()


async def end_who_waits(stores: Stores) -> None:
    """End the one session that waits for a lock."""
    ended = await stores.database.search(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    assert ended[0][0] == 1


async def test_one_tenants_fault_costs_no_other_its_hits_and_itself_none(stores: Stores) -> None:
    async with await counting(stores) as one:
        one.saw(FIRST, 1)
        await until(lambda: one.written(acme=1))
        async with locked(stores, "SELECT FROM hit_counts FOR UPDATE"):
            one.saw(FIRST, 3)
            one.saw(SECOND, 5)
            await until(lambda: one.written(acme=1, globex=5))
            one.saw(FIRST, 7)
        await until(lambda: one.written(acme=11, globex=5))
        assert one.lost() == 0


async def test_hits_of_an_outage_are_counted_after_it(stores: Stores) -> None:
    async with await counting(stores) as one, locked(stores, "LOCK TABLE hit_counts"):
        one.saw(FIRST, 1)
        await until(lambda: waits_for_a_lock(stores))
        await end_who_waits(stores)
        one.saw(FIRST, 1)
        one.saw(SECOND, 1)
        await until(lambda: waits_for_a_lock(stores))
    assert await one.written(acme=2, globex=1)
    assert one.lost() == 0


class Cutting(Relay):
    """Cuts the line as soon as a COMMIT went through: nobody hears what became of it."""

    cuts = True

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
            if self.cuts and b"COMMIT" in data:
                return


async def test_what_may_have_been_counted_is_not_counted_again(stores: Stores) -> None:
    relay = Cutting(stores.url)
    with relay:
        async with await counting(stores, relay.url) as one:
            one.saw(FIRST, 3)
            await until(lambda: one.written(acme=3))
            relay.cuts = False
            one.saw(SECOND, 1)
            await until(lambda: one.written(acme=3, globex=1))
            assert one.lost() == 1
    assert await one.written(acme=3, globex=1)


async def test_what_the_database_refuses_is_lost_and_counted_and_holds_up_nothing(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    async with await counting(stores) as one:
        await stores.database.row(f"ALTER TABLE hit_counts ADD CHECK (tenant <> '{FIRST}')")
        one.saw(FIRST, 3)
        one.saw(SECOND, 1)
        await until(lambda: one.written(globex=1))
        assert one.lost() == 1
    assert one.lost() == 1
    assert "counting hits: the database refused a statement: SQLSTATE 23514" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_being_written_when_the_service_stops_is_written(
    stores: Stores, fails: bool
) -> None:
    async with await counting(stores) as one, locked(stores, "LOCK TABLE hit_counts"):
        one.saw(FIRST, 2)
        await until(lambda: waits_for_a_lock(stores))
        one.saw(SECOND, 1)
        draining = asyncio.create_task(one.hits.drain(5))
        await asyncio.sleep(0)
        if fails:
            await end_who_waits(stores)
    await draining
    assert await one.written(acme=2, globex=1)
    assert one.lost() == 0


async def test_hits_that_find_no_place_are_counted_as_lost(stores: Stores) -> None:
    async with await counting(stores) as one:
        now = datetime.now(timezone.utc)
        one.saw(FIRST, 1)
        for _ in range(_TERMS.at_most + 4):
            one.hits.saw(FIRST, Candidate(uuid4(), Answer(b"", None), now, now))
        one.saw(FIRST, 1)
        assert one.lost() == 5
    assert await one.written(acme=2)


async def test_shadow_hits_of_an_outage_are_recorded_after_it_each_once(stores: Stores) -> None:
    await stores.admin.save_policy("t", "p", Policy(mode="shadow"))
    database = await connect(stores.url, size=2, statement_timeout_ms=200)
    shadow = Shadow(PostgresRecords(database), Telemetry(Settings()))
    async with locked(stores, "LOCK TABLE shadow_hits"):
        for number in range(3):
            hit(shadow, number)
        await until(lambda: waits_for_a_lock(stores))

        async def given_up() -> bool:
            return not await waits_for_a_lock(stores)

        await until(given_up)
        hit(shadow, 3)
    await shadow.drain(5)
    await database.close()
    keys = await stores.database.rows("SELECT exact_key FROM shadow_hits ORDER BY exact_key")
    assert [int.from_bytes(row[0], "big") for row in keys] == [0, 1, 2, 3]


async def test_a_tenants_flood_takes_no_place_from_those_who_have_few() -> None:
    written: dict[str, list[str]] = {}

    async def write(tenant: str, batch: list[tuple[str, str]]) -> None:
        written.setdefault(tenant, []).extend(key for key, _ in batch)

    telemetry = Telemetry(Settings())
    terms = Terms("alias", "leaving aliases", every_seconds=60, at_most=20, batch=100)
    batches = Batches[str, str](terms, write, lambda _, later: later, telemetry)
    flood = [batches.add("flood", f"{number}", "") for number in range(1000)]
    assert flood == [True] * 20 + [False] * 980
    few = {tenant: [f"{tenant} {number}" for number in range(3)] for tenant in "abc"}
    assert all(batches.add(tenant, key, "") for tenant, keys in few.items() for key in keys)
    assert not batches.add("flood", "more", "")
    await batches.drain(5)
    assert written == few | {"flood": [f"{number}" for number in range(11)]}
    lost = telemetry.registry.get_sample_value("cachesvc_fail_open_total", {"cause": "alias"})
    assert lost == 980 + 9 + 1


async def test_where_all_have_as_many_nobody_gives_up_a_place() -> None:
    async def write(_tenant: str, _batch: list[tuple[str, str]]) -> None:
        pass

    terms = Terms("alias", "leaving aliases", every_seconds=60, at_most=4, batch=100)
    batches = Batches[str, str](terms, write, lambda _, later: later, Telemetry(Settings()))
    assert [batches.add(tenant, "key", "") for tenant in "abcdef"] == [True] * 4 + [False] * 2
    await batches.drain(5)


async def holds(it: bool) -> bool:
    return it


async def test_of_two_values_of_a_key_the_later_stays_the_later_after_a_fault() -> None:
    written = list[tuple[str, str]]()

    async def write(_tenant: str, batch: list[tuple[str, str]]) -> None:
        if not written:
            written.append(("", ""))
            assert batches.add(FIRST, "key", "new")
            raise StoreUnavailable
        written.extend(batch)

    telemetry = Telemetry(Settings())
    terms = Terms("alias", "leaving aliases", every_seconds=0.01, at_most=10, batch=10)
    batches = Batches[str, str](terms, write, lambda _, later: later, telemetry)
    assert batches.add(FIRST, "key", "old")
    await until(lambda: holds(len(written) > 1))
    await batches.drain(5)
    assert written[1:] == [("key", "new")]


async def test_the_first_value_is_written_at_once_and_those_behind_it_together() -> None:
    rounds = list[list[str]]()

    async def write(_tenant: str, batch: list[tuple[str, str]]) -> None:
        rounds.append([key for key, _ in batch])

    terms = Terms("alias", "leaving aliases", every_seconds=60, at_most=100, batch=100)
    batches = Batches[str, str](terms, write, lambda _, later: later, Telemetry(Settings()))
    batches.add(FIRST, "0", "")
    await until(lambda: holds(bool(rounds)))
    for number in range(1, 9):
        batches.add(FIRST, str(number), "")
        await asyncio.sleep(0)
    assert rounds == [["0"]]
    await batches.drain(5)
    assert rounds == [["0"], [str(number) for number in range(1, 9)]]
