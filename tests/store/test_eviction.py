"""What goes is what is worth least: seldom asked for, cheap to make again, large."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.store import eviction
from cachesvc.store.base import Place, Room, Selection
from cachesvc.store.records import HitCount
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, age, exact, new, save, unit

if TYPE_CHECKING:
    from uuid import UUID


async def put(
    stores: Stores, name: str, size: int = 10, tokens: int = 10, **fields: object
) -> UUID:
    # Of random bytes, which weigh what they measure: nothing makes them smaller.
    answer = Answer(random.Random(name).randbytes(size), "application/json", tokens, 0)
    stored = await stores.entries.put(new(name, answer=answer, **fields))
    assert stored.entry_id
    return stored.entry_id


async def hit(stores: Stores, entry_id: UUID, times: int = 1) -> None:
    await stores.records.count_hits([HitCount(TENANT, entry_id, times, 10 * times)])


async def held(stores: Stores, names: list[str]) -> list[str]:
    return [name for name in names if (await stores.entries.find_exact(exact(name))).candidates]


async def evict(stores: Stores, most: int | None = None, bytes: int | None = None) -> int:
    return await stores.admin.remove_overflow(Room(TENANT, POLICY, most, bytes))


async def test_a_flood_of_new_prompts_does_not_wash_out_what_is_asked_for(stores: Stores) -> None:
    await save(stores, 3600)
    popular = [f"popular {number}" for number in range(5)]
    for name in popular:
        await hit(stores, await put(stores, name), 3)
    await age(stores, 600)
    await stores.database.row("UPDATE hit_counts SET last_hit_at = now() - interval '10 minutes'")
    flood = [f"flood {number}" for number in range(30)]
    for name in flood:
        await put(stores, name)
    assert await evict(stores, most=20) == 16  # with a twentieth to spare
    assert await held(stores, popular) == popular
    assert await held(stores, flood) == flood[-14:]


async def test_what_was_popular_once_does_not_stay_for_ever(stores: Stores) -> None:
    await save(stores, 3600)
    await hit(stores, await put(stores, "once"), 3)  # worth two quarters of the hour
    await age(stores, 2400)
    await stores.database.row("UPDATE hit_counts SET last_hit_at = now() - interval '40 minutes'")
    await put(stores, "new")
    assert await evict(stores, most=1) == 1
    assert await held(stores, ["once", "new"]) == ["new"]


@pytest.mark.parametrize(
    ("worse", "better"),
    [({"tokens": 10}, {"tokens": 4000}), ({"size": 50_000}, {"size": 2000})],
    ids=["cheap", "large"],
)
async def test_the_cheap_and_the_large_go_first(
    stores: Stores, worse: dict[str, int], better: dict[str, int]
) -> None:
    await save(stores, 3600)
    await put(stores, "better", **better)
    await put(stores, "worse", **worse)  # younger, and yet
    assert await evict(stores, most=1) == 1
    assert await held(stores, ["better", "worse"]) == ["better"]


async def test_bytes_are_a_limit_of_their_own(stores: Stores) -> None:
    policy = Policy(sharing="shared", max_bytes=50_000)
    await stores.admin.save_policy(TENANT, POLICY, policy)
    assert await stores.admin.limited() == [Room(TENANT, POLICY, None, 50_000)]
    names = [str(number) for number in range(10)]
    for name in names:
        await put(stores, name, size=10_000)
    assert await evict(stores, bytes=50_000) == 6  # 47,500 are kept, and that is four
    assert await held(stores, names) == names[-4:]
    assert await evict(stores, bytes=50_000) == 0


async def test_prompts_and_vectors_weigh_too(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(
        new("a", vector=unit(1), prompt_text="x" * 1000, answer=Answer(b"", None))
    )
    assert await evict(stores, bytes=1000 + 768) == 0
    assert await evict(stores, bytes=1000 + 767) == 1


async def test_a_tenant_has_one_room_for_all_its_policies(stores: Stores) -> None:
    await save(stores, 3600)
    places = [PLACE, Place(TENANT, "second", "shared"), Place("globex", POLICY, "shared")]
    for place in places[1:]:
        await stores.admin.save_policy(place.tenant, place.policy_id, Policy(sharing="shared"))
    assert await stores.admin.tenants() == [TENANT, "globex"]
    for number in range(4):
        for place in places:
            await put(stores, str(number), place=place)
    assert await stores.admin.remove_overflow(Room(TENANT, None, 3, None)) == 5
    kept = [len(await stores.admin.counts(tenant)) for tenant in (TENANT, "globex")]
    assert kept == [2, 1]
    counts = {c.policy_id: c.entries for c in await stores.admin.counts(TENANT)}
    assert sum(counts.values()) == 3
    assert (await stores.admin.counts("globex"))[0].entries == 4
    assert await stores.admin.remove_overflow(Room(TENANT, None)) == 0


@pytest.mark.parametrize("end", ["evicted", "purged", "expired", "replaced"])
async def test_counts_go_with_their_entries(stores: Stores, end: str) -> None:
    await save(stores, 3600)
    await hit(stores, await put(stores, "a"))
    await hit(stores, await put(stores, "b"))
    if end == "evicted":
        await evict(stores, most=1)
    elif end == "purged":
        await stores.admin.purge(Selection(TENANT, POLICY), dry_run=False)
    elif end == "expired":
        await age(stores, 3601)
        await stores.admin.remove_expired(100)
    else:
        await put(stores, "a")
        await put(stores, "b")
    left = await stores.database.row("SELECT count(*) FROM hit_counts")
    assert left["count"] == (1 if end == "evicted" else 0)


async def test_hits_add_up_and_those_of_nobody_are_dropped(stores: Stores) -> None:
    await save(stores, 3600)
    entry_id = await put(stores, "a")
    gone = await put(stores, "b")
    await put(stores, "b")
    for times in (1, 4):
        await stores.records.count_hits(
            [HitCount(TENANT, entry_id, times, times * 10), HitCount(TENANT, gone, 1, 1)]
        )
        await stores.records.count_hits([HitCount("globex", entry_id, 9, 9)])
    (row,) = await stores.database.rows("SELECT * FROM hit_counts")
    assert (row["entry_id"], row["hits"], row["tokens_saved"]) == (entry_id, 5, 50)
    shown = await stores.admin.entry(TENANT, entry_id)
    assert shown
    assert (shown.hits, shown.last_hit_at) == (5, row["last_hit_at"])


async def test_counts_that_an_entry_left_behind_are_trimmed(stores: Stores) -> None:
    await save(stores, 3600)
    await hit(stores, await put(stores, "a"))
    await stores.database.row(
        "UPDATE hit_counts SET last_hit_at = now() - $1::interval", timedelta(hours=2)
    )
    assert await stores.records.trim() == 0
    await stores.database.row("DELETE FROM entries")
    assert await stores.records.trim() == 1


async def test_of_very_many_a_sample_is_held_to_its_share(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranking all of ten million would take longer than a statement may."""
    monkeypatch.setattr(eviction, "_ALL", 100)
    monkeypatch.setattr(eviction, "_SAMPLED", 40)
    await save(stores, 3600)
    popular = [f"popular {number}" for number in range(20)]
    for name in popular:
        await hit(stores, await put(stores, name), 5)
    for number in range(180):
        await put(stores, f"flood {number}")
    removed = await evict(stores, most=160)
    assert 6 <= removed <= 16  # of 40 that are looked at, 32 fit, and a twentieth is spared
    while await evict(stores, most=160):
        pass
    (count,) = await stores.admin.counts(TENANT)
    assert 140 <= count.entries < 200
    assert await held(stores, popular) == popular
