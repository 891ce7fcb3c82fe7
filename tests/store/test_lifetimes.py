"""How long an entry lives: by the database's clock, on each tier, under the policy in force."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.postgres import TENANT, Stores
from tests.store.entries import age, exact, nearest, new, save, unit


async def alive(stores: Stores, name: str = "a") -> tuple[bool, bool]:
    """Whether the entry answers on the exact and on the semantic tier."""
    by_key = await stores.entries.find_exact(exact(name))
    by_vector = await stores.entries.find_nearest(nearest(unit(1)))
    assert by_key.dead == (None if by_key.candidates else "expired")
    return bool(by_key.candidates), bool(by_vector.candidates)


async def test_each_tier_has_its_own_ttl_and_a_put_tells_the_later(stores: Stores) -> None:
    await save(stores, 100, 200)
    stored = await stores.entries.put(new("a", vector=unit(1)))
    by_key = (await stores.entries.find_exact(exact("a"))).candidates[0]
    by_vector = (await stores.entries.find_nearest(nearest(unit(1)))).candidates[0]
    assert by_key.expires_at - by_key.created_at == timedelta(seconds=100)
    assert by_vector.expires_at - by_vector.created_at == timedelta(seconds=200)
    assert stored.expires_at == by_vector.expires_at
    await age(stores, 99)
    assert await alive(stores) == (True, True)
    await age(stores, 1.1)
    assert await alive(stores) == (False, True)
    await age(stores, 100)
    assert await alive(stores) == (False, False)


@pytest.mark.parametrize(("asked", "lives"), [(10, 10), (10**18, 100), (None, 100), (1, 1)])
async def test_the_asked_ttl_is_capped_by_the_policy_and_caps_both_tiers(
    stores: Stores, asked: int | None, lives: int
) -> None:
    await save(stores, 100)
    stored = await stores.entries.put(new("a", vector=unit(1), ttl_seconds=asked))
    for found in (
        await stores.entries.find_exact(exact("a")),
        await stores.entries.find_nearest(nearest(unit(1))),
    ):
        (candidate,) = found.candidates
        assert candidate.expires_at - candidate.created_at == timedelta(seconds=lives)
        assert stored.expires_at == candidate.expires_at


async def test_lowering_a_ttl_acts_on_stored_entries_at_once(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("a", vector=unit(1)))
    await age(stores, 60)
    await save(stores, 90, 30)
    assert await alive(stores) == (True, False)
    (candidate,) = (await stores.entries.find_exact(exact("a"))).candidates
    assert candidate.expires_at - candidate.created_at == timedelta(seconds=90)
    await save(stores, 30, 30)
    assert await alive(stores) == (False, False)


async def test_raising_a_ttl_revives_nothing(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("a", vector=unit(1)))
    await age(stores, 60)
    await save(stores, 30, 3600)
    await save(stores, 3600)
    assert await alive(stores) == (False, True)
    await save(stores, 3600, 30)
    await save(stores, 7200, 7200)
    assert await alive(stores) == (False, False)
    await stores.entries.put(new("a", vector=unit(1)))
    assert await alive(stores) == (True, True)


async def test_raising_a_ttl_does_not_lengthen_what_is_stored(stores: Stores) -> None:
    await save(stores, 100)
    await stores.entries.put(new("a", vector=unit(1)))
    await save(stores, 200)
    await age(stores, 101)
    assert await alive(stores) == (False, False)


async def test_what_still_lives_survives_every_change_of_the_ttl(stores: Stores) -> None:
    await save(stores, 100)
    await stores.entries.put(new("a", vector=unit(1)))
    await age(stores, 40)
    for ttl in (60, 1000, 50, 3600):
        await save(stores, ttl)
        assert await alive(stores) == (True, True)


async def test_reads_do_not_lengthen_life(stores: Stores) -> None:
    await save(stores, 100)
    stored = await stores.entries.put(new("a", vector=unit(1)))
    for _ in range(3):
        await age(stores, 30)
        found = await stores.entries.find_exact(exact("a"))
        assert stored.expires_at
        expected = stored.expires_at - timedelta(seconds=90)
    assert found.candidates[0].expires_at == expected


async def test_an_expired_entry_never_shadows_a_live_one(stores: Stores) -> None:
    await save(stores, 100)
    for n in range(40):
        await stores.entries.put(new(vector=unit(1), prompt_text=f"old {n}"))
    await age(stores, 101)
    await stores.entries.put(new(vector=unit(2), prompt_text="new"))
    found = await stores.entries.find_nearest(nearest(unit(1), top_k=1))
    assert len(found.candidates) == 1
    await stores.entries.put(new(vector=unit(1), prompt_text="old 7"))
    found = await stores.entries.find_nearest(nearest(unit(1), top_k=1))
    assert found.candidates[0].similarity == pytest.approx(1, abs=1e-5)


async def test_a_quarantined_entry_answers_on_no_tier_and_says_why(stores: Stores) -> None:
    await save(stores, 100)
    stored = await stores.entries.put(new("a", vector=unit(1)))
    await stores.database.row(
        "UPDATE entries SET quarantined_at = now() WHERE id = $1", stored.entry_id
    )
    found = await stores.entries.find_exact(exact("a"))
    assert (found.candidates, found.dead) == ((), "quarantined")
    assert not (await stores.entries.find_nearest(nearest(unit(1)))).candidates
    await stores.entries.put(new("a", vector=unit(1)))
    assert await alive(stores) == (True, True)


async def test_what_expired_is_removed_in_batches_and_what_lives_stays(stores: Stores) -> None:
    await save(stores, 100)
    for n in range(5):
        await stores.entries.put(new(str(n), vector=unit(n)))
    await age(stores, 101)
    await stores.entries.put(new("a", vector=unit(1)))
    assert await stores.admin.remove_expired(3) == 3
    assert await stores.admin.remove_expired(100) == 2
    assert await stores.admin.remove_expired(100) == 0
    assert await alive(stores) == (True, True)
    assert (await stores.admin.counts(TENANT))[0].entries == 1


async def test_what_a_lower_ttl_killed_is_removed_too(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("a", vector=unit(1)))
    await age(stores, 60)
    await save(stores, 30, 3600)
    assert await stores.admin.remove_expired(10) == 0  # it lives on the semantic tier
    await save(stores, 30, 30)
    assert await stores.admin.remove_expired(10) == 1


async def test_removing_waits_for_no_lock(stores: Stores) -> None:
    await save(stores, 100)
    for n in range(3):
        await stores.entries.put(new(str(n)))
    await age(stores, 101)
    async with stores.database.connection() as holder, holder.transaction():
        await holder.execute("SELECT FROM entries LIMIT 1 FOR UPDATE")
        assert await stores.admin.remove_expired(10) == 2
    assert await stores.admin.remove_expired(10) == 1
