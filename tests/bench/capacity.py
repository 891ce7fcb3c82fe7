"""`python -m tests.bench.capacity --rows 200000`: what so many entries cost, and how fast they are.

Half of them lie in one cell, which is split into leaves; the others 500 to a cell, which is
scanned. Every entry has an exact key, 384 dimensions and a body of 800 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import ExactQuery, NearestQuery, NewEntry
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import migrate_in_subprocess
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from tests.bench.recall.data import (
    COLUMNS,
    POLICY,
    SPACE,
    TENANT,
    Workload,
    id_of,
)
from tests.bench.recall.loading import split

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from cachesvc.store.pool import Database

SMALL = 500
CALLERS = 8
_SETTINGS = {
    "shared_buffers": "1GB",
    "maintenance_work_mem": "1GB",
    "max_wal_size": "8GB",
    "autovacuum": "off",
}
_SIZES = """
    SELECT c.relname, pg_relation_size(c.oid) FROM pg_class c JOIN pg_index i
    ON i.indexrelid = c.oid WHERE i.indrelid = 'entries'::regclass AND pg_relation_size(c.oid) > 1e5
    ORDER BY 2 DESC
"""
console = Console(width=100)


def rows_of(workload: Workload) -> Iterator[list[tuple[Any, ...]]]:
    """Rows with exact keys."""
    expires = datetime.now(timezone.utc) + timedelta(days=1)
    for batch in workload.records():
        yield [(*row[:-1], key_of(row[1].bytes), expires) for row in batch]


def key_of(name: bytes) -> bytes:
    return hashlib.sha256(name).digest()


async def fill(database: Database, workload: Workload) -> tuple[float, float]:
    """Write all rows, then split the large cell into leaves; the seconds of each."""
    columns = (*COLUMNS[:-1], "exact_key", "exact_expires_at")  # no entry has its cell's code
    async with database.connection() as connection:
        await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
        began = time.perf_counter()
        for records in rows_of(workload):
            await connection.copy_records_to_table(
                "entries", records=records, columns=columns, timeout=600
            )
        copied = time.perf_counter() - began
        await connection.execute("ANALYZE entries", timeout=600)
    began = time.perf_counter()
    await split(database, workload, console)
    return copied, time.perf_counter() - began


async def rate(seconds: float, once: Callable[[], Awaitable[object]]) -> tuple[float, float, float]:
    """Calls a second of all callers together, and p50 and p99 in ms."""
    times: list[float] = []
    ends = time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < ends:
            await once()
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    taken = time.perf_counter() - began
    p50, p99 = np.percentile(times, (50, 99))
    return len(times) / taken, float(p50), float(p99)


class Calls:
    """What is asked, of random entries."""

    def __init__(self, store: PostgresStore, workload: Workload) -> None:
        self._store = store
        self._workload = workload

    def _any(self, *, large: bool | None = None) -> tuple[int, int]:
        workload = self._workload
        if large is None:
            large = bool(workload.dice.integers(2))
        scope = 0 if large else int(workload.dice.integers(1, len(workload.sizes)))
        return scope, int(workload.dice.integers(workload.sizes[scope]))

    async def exact(self) -> None:
        scope, index = self._any()
        key = key_of(id_of(scope, index).bytes)
        found = await self._store.find_exact(ExactQuery(self._workload.place(scope), key))
        assert found.candidates

    async def small(self) -> None:
        await self._near(*self._any(large=False))

    async def large(self) -> None:
        await self._near(*self._any(large=True))

    async def _near(self, scope: int, index: int) -> None:
        vector = self._workload.like(scope, index, 0.97)
        place = self._workload.place(scope)
        found = await self._store.find_nearest(
            NearestQuery(place, b"", SPACE, vector, served_from=0.9)
        )
        assert found.candidates

    async def put(self) -> None:
        scope = int(self._workload.dice.integers(len(self._workload.sizes)))
        answer = Answer(b"x" * 800, "application/json")
        key = self._workload.dice.bytes(32)
        await self._store.put(
            NewEntry(
                self._workload.place(scope),
                answer,
                exact_key=key,
                space=SPACE,
                vector=self._workload.unlike(),
                prompt_text="a prompt",
            )
        )


async def measure(url: str, rows: int, seconds: float) -> None:
    workload = Workload("capacity", [rows // 2] + [SMALL] * (rows // 2 // SMALL), same=False)
    database = await connect(url, size=CALLERS * 2, statement_timeout_ms=10_000)
    try:
        await PostgresAdmin(database).save_policy(TENANT, POLICY, Policy())
        copied, built = await fill(database, workload)
        await _sizes(database, workload.rows, copied, built)
        calls = Calls(PostgresStore(database), workload)
        table = Table("call", "per second", "p50 ms", "p99 ms", title=f"{CALLERS} callers")
        for name, once in (
            ("exact", calls.exact),
            (f"nearest of {SMALL}", calls.small),
            (f"nearest of {rows // 2:,}", calls.large),
            ("put", calls.put),
        ):
            await rate(seconds / 4, once)  # warm
            per_second, p50, p99 = await rate(seconds, once)
            table.add_row(name, f"{per_second:,.0f}", f"{p50:.1f}", f"{p99:.1f}")
        console.print(table)
    finally:
        await database.close()


async def _sizes(database: Database, rows: int, copied: float, built: float) -> None:
    heap, toast = await database.row(
        "SELECT pg_relation_size('entries'), pg_table_size('entries') - pg_relation_size('entries')"
    )
    indexes = await database.rows(_SIZES)
    table = Table("part", "MB", "bytes per entry", title=f"{rows:,} entries")
    (leaves,) = await database.row("SELECT pg_total_relation_size('leaves')")
    parts = [
        *(("table", heap), ("long values", toast), ("`leaves`, with indexes", leaves)),
        *((row[0], row[1]) for row in indexes),
    ]
    for name, size in [*parts, ("all", sum(size for _, size in parts))]:
        table.add_row(name, f"{size / 1e6:,.0f}", f"{size / rows:,.0f}")
    console.print(table)
    console.print(f"copied in {copied:.0f} s; the large cell split in {built:.0f} s")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.capacity", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each kind of call")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
        server = EmbeddedPostgres(Path(folder), settings=_SETTINGS)
        server.start()
        try:
            migrate_in_subprocess(server.url)
            asyncio.run(measure(server.url, options.rows, options.seconds))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
