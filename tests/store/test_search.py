"""What an exact scan would find is found, in small cells and in large ones."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from msgspec import structs
from pgvector import HalfVector

from cachesvc.core.cells import cell_of
from cachesvc.store.base import NearestQuery, Place
from cachesvc.store.leaves import tend
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, near, nearest, new, save, unit

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.core.vectors import Vector

D = 64  # indexed by these tests: 384 would take longer to index
SMALL, LARGE = 40, 1200
SCOPES = 12
COLUMNS = (
    *("tenant", "id", "policy_id", "scope", "space", "dimensions", "partition", "prompt_hash"),
    *("embedding", "leaf", "body", "prompt_text", "prompt_tokens", "completion_tokens"),
    *("model", "tags", "generation", "provenance", "created_at", "semantic_expires_at"),
)


async def fill(
    stores: Stores, scope: str, vectors: list[Vector], *, expired: bool = False
) -> list[UUID]:
    """Entries of these vectors in `scope`, as puts would leave them; their ids."""
    cell = cell_of(TENANT, POLICY, scope, "", vectors[0].size, b"")
    now = datetime.now(timezone.utc)
    until = now + timedelta(hours=-1 if expired else 1)
    ids = [uuid4() for _ in vectors]
    rows: list[tuple[Any, ...]] = [
        (
            *(TENANT, id, POLICY, scope, "", vector.size, b"", id.bytes, HalfVector(vector)),
            *(cell, b"{}", b"", 0, 0, "", [], 1, "", now - timedelta(seconds=9), until),
        )
        for id, vector in zip(ids, vectors, strict=True)
    ]
    async with stores.database.connection() as connection:
        await connection.copy_records_to_table("entries", records=rows, columns=COLUMNS)
    return ids


async def split(stores: Stores, scope: str) -> None:
    """As the service does when it has found that the cell has outgrown scanning."""
    growing = stores.entries.growing
    growing.add(TENANT, cell_of(TENANT, POLICY, scope, "", D, b""))
    while growing.crowded() is not None:
        await tend(stores.database, growing)


def query(scope: str, vector: Vector, **fields: Any) -> NearestQuery:
    return nearest(vector, Place(TENANT, POLICY, scope), **fields)


async def found(stores: Stores, scope: str, vectors: list[Vector], ids: list[UUID]) -> float:
    """The share of these, asked for by a prompt much like theirs, that are found again."""
    again = 0
    for number, (vector, id) in enumerate(zip(vectors, ids, strict=True)):
        asked = query(scope, near(vector, 0.92, number))
        candidates = (await stores.entries.find_nearest(asked)).candidates
        again += bool(candidates) and candidates[0].entry_id == id
    return again / len(vectors)


async def test_the_same_prompts_in_every_scope_are_found_in_each(stores: Stores) -> None:
    await save(stores, 3600)
    prompts = [unit(number, D) for number in range(LARGE)]
    ids = {f"scope {n}": await fill(stores, f"scope {n}", prompts[:400]) for n in range(SCOPES)}
    ids["large"] = await fill(stores, "large", prompts)
    await split(stores, "large")
    for scope in ("scope 0", "scope 7", "large"):
        few = slice(0, 400, 4)
        assert await found(stores, scope, prompts[:400][few], ids[scope][:400][few]) >= 0.99


@pytest.mark.parametrize("rows", [SMALL, LARGE])
async def test_expired_rows_that_wait_for_removal_hide_nothing(stores: Stores, rows: int) -> None:
    await save(stores, 3600)
    prompts = [unit(number, D) for number in range(rows)]
    # All of the dead are nearer to the questions than what lives.
    dead = [near(vector, 0.99, number) for number, vector in enumerate(prompts)]
    await fill(stores, "s", dead, expired=True)
    ids = await fill(stores, "s", prompts)
    await split(stores, "s")
    few = slice(0, rows, rows // 40)
    assert await found(stores, "s", prompts[few], ids[few]) >= 0.99


async def test_what_was_put_just_now_is_found(stores: Stores) -> None:
    await save(stores, 3600)
    await fill(stores, "shared", [unit(number, D) for number in range(LARGE)])
    await split(stores, "shared")
    for number in range(50):
        vector = unit(10_000 + number, D)
        stored = await stores.entries.put(new(str(number), vector=vector))
        candidates = (await stores.entries.find_nearest(nearest(near(vector, 0.93)))).candidates
        assert candidates[0].entry_id == stored.entry_id


@pytest.mark.parametrize("rows", [SMALL, LARGE])
async def test_a_cell_of_the_same_name_leaks_nothing(stores: Stores, rows: int) -> None:
    """Two cells of one name do not happen; if they did, their parts would still be compared."""
    await save(stores, 3600)
    prompts = [unit(number, D) for number in range(rows)]
    ids = await fill(stores, "alice", prompts)
    await split(stores, "alice")
    alice, mallory = (cell_of(TENANT, POLICY, name, "", D, b"") for name in ("alice", "mallory"))
    await stores.database.row("UPDATE entries SET leaf = $2 WHERE leaf = $1", alice, mallory)
    await stores.database.row("UPDATE leaves SET cell = $2 WHERE cell = $1", alice, mallory)
    stores.entries.growing.found(alice, split=False)
    for number in range(0, rows, rows // 20):
        candidates = await stores.entries.find_nearest(query("mallory", prompts[number]))
        assert candidates.candidates == ()
    await stores.database.row("UPDATE entries SET scope = 'mallory'")
    (nearest_one, *_) = (await stores.entries.find_nearest(query("mallory", prompts[3]))).candidates
    assert nearest_one.entry_id == ids[3]


@pytest.mark.parametrize("part", ["tenant", "policy_id", "scope", "space", "partition"])
async def test_every_part_of_a_cell_keeps_its_vectors_apart(stores: Stores, part: str) -> None:
    await save(stores, 3600)
    vector = unit(1, D)
    assert (await stores.entries.put(new("a", vector=vector, space="s", partition=b"p"))).entry_id
    place, fields = PLACE, {"space": "s", "partition": b"p"}
    assert (await stores.entries.find_nearest(nearest(vector, place, **fields))).candidates
    if part in fields:
        fields[part] = b"q" if part == "partition" else "t"
    else:
        place = structs.replace(place, **{part: "other"})
        await stores.admin.save_policy(
            place.tenant, place.policy_id, (await stores.admin.policies(TENANT))[0].policy
        )
    assert not (await stores.entries.find_nearest(nearest(vector, place, **fields))).candidates
