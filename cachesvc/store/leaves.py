"""Cells that outgrow scanning are split into leaves, as SPANN's posting lists (Chen et al., 2021).

A leaf holds the entries that lie nearest to its centroid. A search scans the leaves nearest to what
it asks, a put goes to the nearest one, and a leaf that has grown too large is split in turn, its
rows going to whichever leaf is nearest to them now (as in SPFresh, Xu et al., 2023). Nothing of one
cell is ever in another's way.

While a leaf is split nothing is lost: no put goes there any more, and every search of its cell
scans it, too, until it is empty.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from pgvector import HalfVector

from cachesvc.core.cells import code_of
from cachesvc.core.clusters import centroids_of, mean_of, nearest_of
from cachesvc.errors import StoreError
from cachesvc.store.patience import patient
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from cachesvc.core.clusters import Vectors
    from cachesvc.store.growing import GrowingLeaves
    from cachesvc.store.pool import Database

_SAMPLE = 2048
_COUNTED = 32_000  # rows: beyond them a leaf is split into as many as ever
_MOST_LEAVES = 128  # made of one at a time
_NEAR_LEAVES = 64  # among which a row that is moved has its nearest
_MOVED = 500
_LOOKED_AT = 4000  # leaves, by one statement of the sweep


async def tend(database: Database, growing: GrowingLeaves) -> int:
    """Split one leaf that has grown too large, or move some of its rows: how many were moved.

    Several replicas may do so at once. Raises StoreError; then others have their turn first.
    """
    crowded = growing.crowded()
    if crowded is None:
        return 0
    tenant, leaf = crowded
    try:
        moved = await _step(database, growing, tenant, leaf)
    except StoreError:
        growing.later(leaf)
        raise
    growing.moved += moved
    return moved


async def _step(database: Database, growing: GrowingLeaves, tenant: str, leaf: bytes) -> int:
    row = await _look(database, tenant, leaf)
    emptied = row is not None and row["splitting"] and row["open"]
    if row is None or not (emptied or await _split(database, growing, tenant, leaf, row)):
        growing.done(leaf)
        return 0
    seen, moved = await _move(database, growing, tenant, row["cell"] or leaf, leaf)
    if seen == moved < _MOVED:
        await _end(database, growing, tenant, leaf)
    elif not moved:
        growing.later(leaf)
    return moved


async def sweep(database: Database, growing: GrowingLeaves) -> None:
    """Go on with what another process, or an earlier one, has begun to split; remove what is empty.

    Raises StoreError.
    """
    async with patient(database) as connection:
        rows = await connection.fetch(statement("split_tenants"))
    failed: StoreError | None = None
    for row in rows:
        try:
            await _look_for_work(database, growing, row["tenant"])
            await _remove_empty(database, row["tenant"])
        except StoreError as exc:
            failed = exc  # no reason to leave the others out
    if failed is not None:
        raise failed


async def _look_for_work(database: Database, growing: GrowingLeaves, tenant: str) -> None:
    """What is half done, and what has grown without anybody having counted all of it."""
    async with patient(database) as connection:
        for row in await connection.fetch(statement("unfinished_leaves"), tenant, _MOVED):
            growing.add(tenant, row["leaf"])
    last: bytes | None = b""
    while last is not None:
        async with patient(database) as connection:
            rows = await connection.fetch(
                statement("leaf_sizes"), tenant, last, _LOOKED_AT, growing.bounds(1).leaf + 1
            )
        for row in rows:
            if row["rows"] > growing.bounds(row["dimensions"]).leaf:
                growing.add(tenant, row["leaf"])
        last = rows[-1]["leaf"] if rows else None


async def _remove_empty(database: Database, tenant: str) -> None:
    """Leaves that hold nothing are closed, and removed once no put can be on its way to them."""
    last: bytes | None = b""
    while last is not None:
        async with patient(database) as connection:
            last = await connection.fetchval(statement("close_leaves"), tenant, last, _LOOKED_AT)
    removed = _MOVED
    while removed == _MOVED:
        async with patient(database) as connection:
            removed = await connection.fetchval(statement("remove_leaves"), tenant, _MOVED)


async def _look(database: Database, tenant: str, leaf: bytes) -> Any:
    """None where nothing is to be done: it is gone, and empty."""
    async with patient(database) as connection:
        row = await connection.fetchrow(statement("leaf"), tenant, leaf, _COUNTED)
    return row if row["rows"] or row["splitting"] else None


async def _split(
    database: Database, growing: GrowingLeaves, tenant: str, leaf: bytes, row: Any
) -> bool:
    """Whether there are leaves now for its rows to go to."""
    async with patient(database) as connection:
        rows = await connection.fetch(statement("leaf_rows"), tenant, leaf, _SAMPLE)
    if not rows:
        return False
    sample = await asyncio.to_thread(_vectors, rows)
    bound = growing.bounds(sample.shape[1])
    # Rows that were put while their leaf was removed are in none; they go to those there are.
    lost = row["split"] and row["cell"] is None
    small = row["rows"] <= (bound.leaf if row["cell"] else bound.cell)
    if small and not lost and not row["splitting"]:
        return False
    centroids: list[Vectors] = []
    if not row["open"] or not lost:
        # Not as many as would be half full: many are far from equal.
        number = min(_MOST_LEAVES, max(2, round(1.25 * row["rows"] / bound.leaf)))
        seed = int.from_bytes(leaf[:4], "big")
        centroids = list(await asyncio.to_thread(centroids_of, sample, number, seed))
        if len(centroids) < 2 and not row["splitting"]:
            return False  # all the same: whichever of them is found will do
    cell = row["cell"] or leaf
    code = HalfVector(code_of(cell))
    async with patient(database) as connection:
        if await connection.fetchval(
            statement("split_leaf"),
            *(tenant, leaf, cell, HalfVector(mean_of(sample)), code, bool(row["splitting"])),
        ):
            names = [uuid4().bytes for _ in centroids]
            made = [HalfVector(centroid) for centroid in centroids]
            await connection.fetch(statement("add_leaves"), tenant, cell, code, names, made)
    return True


async def _move(
    database: Database, growing: GrowingLeaves, tenant: str, cell: bytes, leaf: bytes
) -> tuple[int, int]:
    """Some rows of a leaf that is being split go where they are nearest.

    How many there were, and how many went: those that somebody is changing just now stay.
    """
    async with patient(database) as connection:
        near = await connection.fetch(
            statement("leaves_near"), tenant, cell, leaf, _NEAR_LEAVES + _MOST_LEAVES
        )
        rows = await connection.fetch(statement("leaf_rows"), tenant, leaf, _MOVED)
        if not rows or not near:
            return len(rows), 0
        nearest = await asyncio.to_thread(_nearest, rows, near)
        moved: int = await connection.fetchval(
            statement("move_rows"), tenant, leaf, [row["id"] for row in rows], nearest
        )
    for one in nearest:
        growing.put(tenant, one, rows[0]["embedding"].size)
    return len(rows), moved


async def _end(database: Database, growing: GrowingLeaves, tenant: str, leaf: bytes) -> None:
    async with patient(database) as connection:
        await connection.fetch(statement("leaf_is_empty"), tenant, leaf)
    growing.done(leaf)


def _nearest(rows: list[Any], near: list[Any]) -> list[bytes]:
    """For each row the name of the nearest of these leaves."""
    centroids = np.stack([row["centroid"] for row in near]).astype(np.float32)
    return [near[int(one)]["leaf"] for one in nearest_of(_vectors(rows), centroids)]


def _vectors(rows: list[Any]) -> Vectors:
    """Shape (n, d), float32, of unit length."""
    stacked = np.stack([row["embedding"] for row in rows]).astype(np.float32)
    vectors: Vectors = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return vectors
