"""`python -m tests.bench.growth`: a day of puts, expiry and eviction in two minutes.

Half of the puts go to a policy whose entries expire within an hour, half to one that is full and
evicts. The service's own sweeper removes, the server's own autovacuum frees. Time is compressed by
the TTLs; autovacuum cannot look more often than once a second, so that it comes late: a worse day
than a real one. Steady is the median of the hours 5 to 12, the end that of the last 8.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import numpy as np

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.service.leaves import tend_leaves
from cachesvc.service.sweep import reap
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Settings
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import NearestQuery, NewEntry, Place
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.growing import Bounds, GrowingLeaves
from cachesvc.store.migrate import migrate_in_subprocess
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.postgres_records import PostgresRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachesvc.core.vectors import Vector

HOURS = 24
SERVER = {"fsync": "off", "autovacuum": "on", "autovacuum_naptime": "1s"}
_PLACES = [Place("growth", name, "shared") for name in ("expiring", "full")]
_CALLERS = 4
_SIZES = """
SELECT
    pg_relation_size('entries') AS heap, pg_table_size('entries') AS with_bodies,
    pg_total_relation_size('leaves') AS leaves, pg_indexes_size('entries') AS indexes,
    (SELECT count(*) FROM entries) AS rows,
    (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'entries') AS dead,
    (SELECT autovacuum_count FROM pg_stat_user_tables WHERE relname = 'entries') AS vacuums
"""


class Hour(NamedTuple):
    """At the end of a simulated hour: bytes, rows, and the milliseconds of its puts and lookups."""

    heap: int
    with_bodies: int
    leaves: int  # with their HNSW indexes
    indexes: int
    rows: int
    dead: int
    vacuums: int
    puts: int
    put_p99: float
    lookup_p50: float
    lookup_p99: float


class Day:
    """One run: `puts` a simulated hour, of `seconds` each."""

    def __init__(self, url: str, *, puts: int, seconds: float) -> None:
        self._url = url
        self._puts = puts
        self._seconds = seconds
        self._dice = random.Random(7)
        self._vectors = np.random.default_rng(7)
        self._put_times: list[float] = []
        self._lookup_times: list[float] = []

    async def run(
        self, hours: int = HOURS, told: Callable[[int, Hour], None] = lambda *_: None
    ) -> list[Hour]:
        """All of them, one after the other."""
        database = await connect(self._url, statement_timeout_ms=10_000)
        admin, records = PostgresAdmin(database), PostgresRecords(database)
        ttl = max(1, round(self._seconds))
        policies = Policy(ttl_seconds=ttl), Policy(ttl_seconds=86_400, max_entries=self._puts // 2)
        for place, policy in zip(_PLACES, policies, strict=True):
            await admin.save_policy(place.tenant, place.policy_id, policy)
        settings = Settings()
        growing = GrowingLeaves(lambda _: Bounds(cell=50, leaf=20))
        store = PostgresStore(database, growing=growing)
        sweepers = (
            reap(settings, admin, records, Telemetry(settings), every=self._seconds / 20),
            tend_leaves(database, growing, every=0.01, sweep_every=self._seconds),
        )
        tasks = [asyncio.create_task(sweeper) for sweeper in sweepers]
        watcher = await asyncpg.connect(self._url)
        try:
            passed: list[Hour] = []
            for number in range(hours):
                made = await self._hour(store)
                row = await watcher.fetchrow(_SIZES)
                passed.append(Hour._make([*row.values(), made, *self._times()]))
                told(number + 1, passed[-1])
            return passed
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await watcher.close()
            await database.close()

    async def _hour(self, store: PostgresStore) -> int:
        """How many puts came about: fewer than asked for where the machine cannot do more."""
        ends = time.monotonic() + self._seconds
        gap = self._seconds * _CALLERS / self._puts
        return sum(await asyncio.gather(*(self._call(store, ends, gap) for _ in range(_CALLERS))))

    async def _call(self, store: PostgresStore, ends: float, gap: float) -> int:
        made, due = 0, time.monotonic()
        while time.monotonic() < ends:
            due += gap
            vector = self._vectors.standard_normal(384)
            vector /= np.linalg.norm(vector)
            await self._once(store, self._dice.choice(_PLACES), vector)
            made += 1
            await asyncio.sleep(max(0.0, min(due, ends) - time.monotonic()))
        return made

    async def _once(self, store: PostgresStore, place: Place, vector: Vector) -> None:
        """A miss: a lookup that finds nothing near, and its put."""
        body = self._dice.randbytes(min(50_000, int(self._dice.lognormvariate(7.5, 1))))
        answer = Answer(body, "application/json", 100, 300)
        entry = NewEntry(place, answer, self._dice.randbytes(32), vector=vector)
        began = time.monotonic()
        await store.find_nearest(NearestQuery(place, b"", "", vector, served_from=0.92))
        found = time.monotonic()
        await store.put(entry)
        self._lookup_times.append(found - began)
        self._put_times.append(time.monotonic() - found)

    def _times(self) -> tuple[float, float, float]:
        put = statistics.quantiles(self._put_times, n=100)
        looked = statistics.quantiles(self._lookup_times, n=100)
        self._put_times.clear()
        self._lookup_times.clear()
        return 1000 * put[98], 1000 * looked[49], 1000 * looked[98]


def growth(hours: list[Hour]) -> dict[str, float]:
    """How much larger the end is than the steady size, of the table and of the indexes."""
    steady, end = hours[4:12], hours[-8:]
    return {
        name: statistics.median(getattr(hour, name) for hour in end)
        / statistics.median(getattr(hour, name) for hour in steady)
        for name in ("heap", "with_bodies", "leaves", "indexes")
    }


@contextlib.contextmanager
def server(folder: Path, **settings: str) -> Iterator[str]:
    """The URL of a migrated database on a server of its own, whose autovacuum runs."""
    postgres = EmbeddedPostgres(folder, settings={**SERVER, **settings})
    postgres.start()
    try:
        migrate_in_subprocess(postgres.url)
        yield postgres.url
    finally:
        postgres.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--puts", type=int, default=1000, help="in a simulated hour")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a simulated hour")
    parser.add_argument("--hours", type=int, default=HOURS, help="simulated, at least 20")
    parser.add_argument("--share", type=float, help="of dead rows at which vacuum comes")
    asked = parser.parse_args()
    print("hour", *Hour._fields)

    def told(number: int, hour: Hour) -> None:
        sizes = (f"{value / 2**20:,.1f} MiB" for value in hour[:4])
        times = (f"{value:,.1f} ms" for value in hour[-3:])
        print(number, *sizes, *hour[4:-3], *times, sep="  ", flush=True)

    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "data") as url:
        if asked.share is not None:
            asyncio.run(_set_share(url, asked.share))
        hours = asyncio.run(Day(url, puts=asked.puts, seconds=asked.seconds).run(asked.hours, told))
        for name, ratio in growth(hours).items():
            print(f"{name}: the end is {ratio:.2f} of the steady size")


async def _set_share(url: str, share: float) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            f"ALTER TABLE entries SET (autovacuum_vacuum_scale_factor = {share})"
        )
    finally:
        await connection.close()


if __name__ == "__main__":
    main()
