"""Fills the table as puts and the service would leave it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cachesvc.store.growing import Bounds, GrowingLeaves
from cachesvc.store.leaves import tend
from tests.bench.recall.data import COLUMNS, DIMENSIONS, DRAWN, TENANT, Workload

if TYPE_CHECKING:
    from rich.console import Console

    from cachesvc.store.pool import Database

# As autovacuum would, which is off here so that it does not come while times are taken.
_VACUUMED_EVERY = 400_000
BOUND = Bounds.of(DIMENSIONS).leaf
_TOO_LARGE = """
SELECT e.leaf FROM entries e JOIN leaves l USING (tenant, leaf)
GROUP BY e.leaf HAVING count(*) > $1
"""


async def load(database: Database, workload: Workload, console: Console) -> None:
    """Fill the table, index it, gather statistics; says how long it took and what it takes."""
    async with database.connection() as connection:
        await connection.execute(f"SET statement_timeout = 0; TRUNCATE entries, leaves; {DRAWN}")
        await connection.execute("DROP INDEX IF EXISTS other")
        began = time.perf_counter()
        for number, records in enumerate(workload.records()):
            await connection.copy_records_to_table(
                "entries", records=records, columns=COLUMNS, timeout=600
            )
            console.print(f"  {number * len(records):,} of {workload.rows:,} rows", end="\r")
        copied = time.perf_counter() - began
        await connection.execute("ANALYZE entries", timeout=600)
    began = time.perf_counter()
    moved = await split(database, workload, console)
    took = time.perf_counter() - began
    await _vacuum(database)
    leaves = (await database.row("SELECT count(*) FROM leaves"))[0]
    console.print(
        f"  {workload.rows:,} rows copied in {copied:.0f} s; large cells split into {leaves:,} "
        f"leaves in {took:.0f} s, {moved:,} rows moved"
    )


async def split(database: Database, workload: Workload, console: Console) -> int:
    """What the service does bit by bit: how many rows were moved."""
    growing, moved, vacuumed = GrowingLeaves(), 0, 0
    for cell in workload.cells():
        growing.add(TENANT, cell)
    while growing.crowded() is not None:
        while growing.crowded() is not None:
            some = await tend(database, growing)
            moved += some
            if some:
                console.print(f"  {moved:,} rows moved", end="\r")
            if moved >= vacuumed + _VACUUMED_EVERY:
                vacuumed = moved
                await _vacuum(database)
        for row in await database.rows(_TOO_LARGE, BOUND):
            growing.add(TENANT, row["leaf"])
    return moved


async def _vacuum(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute("VACUUM ANALYZE entries, leaves", timeout=1200)
