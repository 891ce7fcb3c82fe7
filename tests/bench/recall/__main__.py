"""`make bench-recall`: what each way to search finds of what is there, and how long it takes.

A query is another wording (cosine 0.94) of a stored prompt; it is found when that very entry comes
back first. The same run asks for what is near to nothing, where searches are slowest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.core.vectors import read_vector
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import NearestQuery, NewEntry
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import migrate_in_subprocess
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from tests.bench.recall.data import (
    POLICY,
    SPACE,
    TENANT,
    Workload,
    id_of,
)
from tests.bench.recall.loading import load
from tests.bench.recall.ways import EXACT, OURS, WAYS, WIDTHS, Searcher, Way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesvc.store.pool import Database

COSINE = 0.94
PUT = 200
# A benchmark's rows need not survive a power cut.
_FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "synchronous_commit": "off",
    "max_wal_size": "16GB",
    "max_parallel_maintenance_workers": "1",
}
console = Console(width=150)


@dataclass(frozen=True)
class Figures:
    """Of one way and one size of cell: share found, and ms."""

    way: str
    cells: str
    found: float
    p50: float
    p99: float
    far_p99: float


def workloads(quick: bool, largest: int) -> list[partial[Workload]]:
    """The worst one, the mixed one, and one partition alone to compare times with."""
    dice = np.random.default_rng(3)
    if quick:
        mixed = [3000, 2100, *([50] * 20)]
        return [
            partial(Workload, "20 scopes x 200, same prompts", [200] * 20, same=True),
            partial(Workload, "mixed sizes", mixed, same=False),
        ]
    tens = [int(size) for size in np.geomspace(largest / 100, largest / 10, 10)]
    small = [int(size) for size in dice.integers(10, 101, largest // 100)]
    mixed_name = (
        f"mixed: one of {largest:,}, ten of {tens[0]:,} to {tens[-1]:,}, {len(small):,} of 10-100"
    )
    return [
        partial(Workload, "one scope of 200,000", [200_000], same=False),
        partial(Workload, "200 scopes x 1,000, same prompts", [1000] * 200, same=True),
        partial(Workload, "20 scopes x 10,000, same prompts", [10_000] * 20, same=True),
        partial(
            Workload, "20 scopes x 5,000, and as many expired ones", [5000] * 20, same=True, dead=1
        ),
        partial(Workload, mixed_name, [largest, *tens, *small], same=False),
    ]


def widths() -> list[partial[Workload]]:
    """Two large cells among more and more of one entry each, all with the same prompts."""
    return [
        partial(Workload, f"2 cells of 10,000 among {cells:,}", [10_000] * 2 + [1] * cells, True)
        for cells in (100, 10_000, 1_000_000)
    ]


async def measure(workload: Workload, way: Way, database: Database, asked: int) -> list[Figures]:
    """One way over every size of cell the workload has."""
    async with database.connection() as connection:
        for name, value in way.settings.items():
            await connection.execute(f"SET {name} = {value}")
        searcher = Searcher(way, database, connection)
        return [await _measure(workload, way, searcher, cells, asked) for cells in groups(workload)]


async def _measure(
    workload: Workload, way: Way, searcher: Searcher, cells: tuple[str, list[int]], asked: int
) -> Figures:
    size, scopes = cells
    again, times, far = 0, [], []
    for _ in range(asked):
        scope = int(workload.dice.choice(scopes))
        index = int(workload.dice.integers(workload.sizes[scope]))
        vector = workload.like(scope, index, COSINE)
        id, ms = await searcher.nearest(workload.place(scope), vector)
        again += id == id_of(scope, index)
        times.append(ms)
    for _ in range(asked // 4):
        scope = int(workload.dice.choice(scopes))
        far.append((await searcher.nearest(workload.place(scope), workload.unlike()))[1])
    p50, p99 = np.percentile(times, (50, 99))
    return Figures(way.name, size, again / asked, p50, p99, float(np.percentile(far, 99)))


async def burst(workload: Workload, database: Database) -> None:
    """Put into the largest cell, and ask for each at once."""
    store, found, times = PostgresStore(database), 0, []
    scope = int(np.argmax(workload.sizes))
    for number, vector in enumerate(workload.prompts(PUT)):
        entry = NewEntry(
            workload.place(scope), Answer(b"{}", None), space=SPACE, prompt_text=str(number),
            vector=read_vector(vector.tolist()),
        )  # fmt: skip
        began = time.perf_counter()
        stored = await store.put(entry)
        times.append((time.perf_counter() - began) * 1000)
        query = NearestQuery(entry.place, b"", SPACE, workload.wording(vector, COSINE))
        nearest = (await store.find_nearest(query)).candidates
        found += bool(nearest) and nearest[0].entry_id == stored.entry_id
    console.print(
        f"  put just now: found {found / PUT:.3f}, a put takes p50 {np.median(times):.1f} ms"
    )


def groups(workload: Workload) -> list[tuple[str, list[int]]]:
    """Scopes by the size of their cell, in powers of ten."""
    by_size: dict[int, list[int]] = {}
    for scope, size in enumerate(workload.sizes):
        by_size.setdefault(int(np.log10(size)), []).append(scope)
    return [(f"10^{power}", scopes) for power, scopes in sorted(by_size.items())]


def show(workload: Workload, rows: Sequence[Figures]) -> None:
    table = Table(title=f"{workload.name} ({workload.rows:,} rows)", title_justify="left")
    for column in ("way", "cell size"):
        table.add_column(column)
    for column in ("found", "p50 ms", "p99 ms", "p99 ms, nothing near"):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda row: row.cells):
        table.add_row(
            row.way, row.cells, f"{row.found:.3f}", f"{row.p50:.2f}", f"{row.p99:.2f}",
            f"{row.far_p99:.2f}",
        )  # fmt: skip
    console.print(table)


async def run(options: argparse.Namespace, server: EmbeddedPostgres) -> list[Figures]:
    """All workloads; returns the figures of the store's own way."""
    own: list[Figures] = []
    await asyncio.to_thread(migrate_in_subprocess, server.url)
    database = await connect(server.url, size=4, statement_timeout_ms=60_000)
    try:
        await PostgresAdmin(database).save_policy(TENANT, POLICY, Policy(sharing="shared"))
        made = widths() if options.widths else workloads(options.quick, options.largest)
        for make in made:
            if options.only not in make.args[0]:
                continue
            workload = make()
            console.print(f"[bold]{workload.name}")
            await load(database, workload, console)
            own += await compare(workload, database, options)
    finally:
        await database.close()
    return own


async def compare(
    workload: Workload, database: Database, options: argparse.Namespace
) -> list[Figures]:
    """All ways over one workload, in turn; an index of their own stands beside the store's."""
    rows: list[Figures] = []
    for index, ways in groupby(ways_of(options), key=lambda way: way.index):
        async with database.connection() as connection:
            await connection.execute("SET statement_timeout = 0")
            await connection.execute("DROP INDEX IF EXISTS other")
            if index is not None:
                await connection.execute(index, timeout=7200)
        for way in ways:
            asked = min(options.asked, 100) if way is EXACT else options.asked
            rows += await measure(workload, way, database, asked)
            console.print(f"  measured: {way.name}")
    show(workload, rows)
    await burst(workload, database)
    return [row for row in rows if row.way == OURS.name]


def ways_of(options: argparse.Namespace) -> Sequence[Way]:
    if options.widths:
        return WIDTHS
    if options.own:
        return (OURS,)
    return (EXACT, OURS) if options.quick else WAYS


def main(arguments: list[str] | None = None) -> list[Figures]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.recall", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m tests.bench.recall --largest 100000 --only mixed",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few thousand rows, a few seconds")
    parser.add_argument("--largest", type=int, default=1_000_000, help="rows of the largest cell")
    parser.add_argument("--asked", type=int, default=400, help="queries of each way and cell size")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--own", action="store_true", help="the store's own way only")
    parser.add_argument("--widths", action="store_true", help="compare widths of the code instead")
    options = parser.parse_args(arguments)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes = {"shared_buffers": memory // 4, "maintenance_work_mem": memory // 5}
    megabytes = {name: f"{min(size, 4 << 30) >> 20}MB" for name, size in sizes.items()}
    with tempfile.TemporaryDirectory(prefix="cachesvc-recall-") as folder:
        server = EmbeddedPostgres(Path(folder), settings={**_FAST, **megabytes})
        server.start()
        try:
            return asyncio.run(run(options, server))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
