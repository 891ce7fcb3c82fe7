"""Rebuilding indexes, and vacuuming, while the service keeps running.

A rebuilt index is built beside the old one and takes its place when it is done: lookups go on
meanwhile, and an attempt that is broken off changes nothing. Its remains go with the next one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from cachesvc.errors import Invalid, StartError
from cachesvc.store.faults import foreign_errors_as_ours
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Callable

INDEX_LOCK_KEY = 0x6361636865696478
_LOOK_SECONDS = 1.0


class Progress(NamedTuple):
    """How far the rebuilding of an index is; `total` is 0 where that is not known."""

    name: str
    phase: str
    done: int
    total: int


class Rebuilt(NamedTuple):
    """Bytes of an index, before and after."""

    name: str
    before: int
    after: int


async def lock_indexes(connection: Any) -> None:
    """Keep every other building of ours away while this session lasts.

    A session lock, because building concurrently takes several transactions. Tried, not waited
    for: whoever waits holds a snapshot, for which the building in turn would wait.
    Raises StartError while another one builds.
    """
    await connection.execute(statement("take_your_time"))
    if not await connection.fetchval(statement("lock_index"), INDEX_LOCK_KEY):
        raise StartError("another index is being built; try again later")


async def reindex(
    url: str,
    index: str | None = None,
    *,
    told: Callable[[Progress], None] = lambda _: None,
    every: float = _LOOK_SECONDS,
) -> list[Rebuilt]:
    """Rebuild `index`, or one after the other all of ours; `told` hears of it each `every` s.

    Raises Invalid for an index that is none of ours, StartError while another one is built,
    StoreUnavailable when the database is away.
    """
    with foreign_errors_as_ours():
        builder = await asyncpg.connect(url)
        try:
            await lock_indexes(builder)
            watcher = await asyncpg.connect(url)
            try:
                chosen = await _chosen(builder, index)
                return [await _rebuild(builder, watcher, one, told, every) for one in chosen]
            finally:
                await watcher.close()
        finally:
            await builder.close()


async def vacuum(url: str) -> None:
    """Free what dead rows take, and count what there is. Raises StoreUnavailable."""
    with foreign_errors_as_ours():
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement("take_your_time"))
            await connection.execute(statement("vacuum"))
        finally:
            await connection.close()


async def _chosen(connection: Any, index: str | None) -> list[Any]:
    """Those to rebuild, after the remains of earlier attempts were removed."""
    rows = await connection.fetch(statement("our_indexes"))
    for row in rows:
        if row["leftover"]:
            await connection.execute(row["remove"])
    ours = {row["name"]: row for row in rows if not row["leftover"]}
    if index is not None and index not in ours:
        raise Invalid(f"index: is {index!r}; must be one of {', '.join(ours) or 'none'}")
    return list(ours.values()) if index is None else [ours[index]]


async def _rebuild(
    builder: Any,
    watcher: Any,
    before: Any,
    told: Callable[[Progress], None],
    every: float,
) -> Rebuilt:
    name = before["name"]
    building = asyncio.create_task(builder.execute(before["rebuild"]))
    try:
        while not (await asyncio.wait((building,), timeout=every))[0]:
            row = await watcher.fetchrow(statement("index_progress"), builder.get_server_pid())
            if row is not None:
                told(Progress(name, row["phase"], row["done"], row["total"]))
        await building
    finally:
        if not building.done():
            building.cancel()
            await asyncio.wait((building,))
    rows = await builder.fetch(statement("our_indexes"))
    return Rebuilt(name, before["bytes"], next(r["bytes"] for r in rows if r["name"] == name))
