"""Policies: written whole, never silently revived, and always with a generation that grows."""

from __future__ import annotations

import asyncio

import pytest

from cachesvc.core.policy import BypassRule, Policy, resolve
from cachesvc.store.base import PolicyRow, Selection
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import exact, nearest, new, unit


async def get(stores: Stores, policy_id: str = POLICY) -> PolicyRow:
    row = await stores.entries.policy(TENANT, policy_id)
    assert row is not None
    return row


async def test_a_policy_comes_back_as_it_was_written_with_its_defaults(stores: Stores) -> None:
    policy = Policy(
        name="näme",
        threshold=0.875,
        tiers=("semantic",),
        bypass_on=(BypassRule("x-debug", "1"),),
        cacheable_finish_reasons=("stop",),
        max_temperature=0.1,
    )
    saved, created = await stores.admin.save_policy(TENANT, POLICY, policy)
    assert created
    assert saved == PolicyRow(resolve(policy, POLICY, 1), saved.revision)
    assert await get(stores) == saved
    assert await stores.admin.policies(TENANT) == [saved]


async def test_writing_replaces_whole_and_raises_the_revision(stores: Stores) -> None:
    first, _ = await stores.admin.save_policy(TENANT, POLICY, Policy(threshold=0.5, ttl_seconds=5))
    saved, created = await stores.admin.save_policy(TENANT, POLICY, Policy(top_k=9))
    assert not created
    assert saved.generation == 1
    assert saved.revision > first.revision
    assert saved.policy == resolve(Policy(top_k=9), POLICY, 1)


async def test_policies_are_listed_by_id(stores: Stores) -> None:
    for policy_id in ("b", "a", "c"):
        await stores.admin.save_policy(TENANT, policy_id, Policy())
    await stores.admin.delete_policy(TENANT, "c")
    listed = await stores.admin.policies(TENANT)
    assert [row.policy.id for row in listed] == ["a", "b"]
    assert await stores.admin.policies("globex") == []


async def test_a_deleted_policy_takes_its_entries_along_and_its_generation_goes_on(
    stores: Stores,
) -> None:
    first, _ = await stores.admin.save_policy(TENANT, POLICY, Policy())
    stored = await stores.entries.put(new("a", vector=unit(1)))
    assert stored.entry_id
    assert await stores.admin.delete_policy(TENANT, POLICY)
    assert not await stores.admin.delete_policy(TENANT, POLICY)
    assert await stores.entries.policy(TENANT, POLICY) is None
    assert await stores.admin.counts(TENANT) == []
    (left,) = await stores.database.rows("SELECT count(*) FROM entries")
    assert left["count"] == 0
    saved, created = await stores.admin.save_policy(TENANT, POLICY, Policy())
    assert created
    assert saved.generation == 2
    assert saved.revision > first.revision
    assert not (await stores.entries.find_exact(exact("a"))).candidates
    assert not (await stores.entries.find_nearest(nearest(unit(1)))).candidates
    assert (await stores.entries.put(new("a", generation=1))).entry_id is None


async def test_deleting_an_unknown_policy_says_so(stores: Stores) -> None:
    await stores.admin.save_policy("globex", POLICY, Policy())
    assert not await stores.admin.delete_policy(TENANT, POLICY)
    assert await stores.entries.policy("globex", POLICY) is not None


async def test_a_default_policy_is_made_once_and_stays_deleted(stores: Stores) -> None:
    assert await stores.admin.create_policy_once(TENANT, POLICY, Policy(top_k=7))
    assert not await stores.admin.create_policy_once(TENANT, POLICY, Policy(top_k=8))
    assert (await get(stores)).policy.top_k == 7
    await stores.admin.delete_policy(TENANT, POLICY)
    assert not await stores.admin.create_policy_once(TENANT, POLICY, Policy())
    assert await stores.entries.policy(TENANT, POLICY) is None


async def test_of_ten_that_create_a_policy_at_once_one_creates_it(stores: Stores) -> None:
    saves = (stores.admin.save_policy(TENANT, POLICY, Policy(top_k=n + 1)) for n in range(10))
    results = await asyncio.gather(*saves)
    assert sum(created for _, created in results) == 1
    assert len({row.revision for row, _ in results}) == 10


async def test_a_revision_is_not_used_again_after_the_schema_was_made_anew(stores: Stores) -> None:
    """A service that remembers a policy by its revision must not take another one for it."""
    seen = set()
    for threshold in (0.5, 0.6):
        for _ in range(3):
            row, _ = await stores.admin.save_policy(TENANT, POLICY, Policy(threshold=threshold))
            seen.add(row.revision)
        await stores.admin.purge(Selection(TENANT, POLICY), dry_run=False)
        seen.add((await get(stores)).revision)
        await stores.database.row("TRUNCATE policies, entries, aliases")
        assert await stores.admin.create_policy_once(TENANT, POLICY, Policy())
        seen.add((await get(stores)).revision)
        await stores.database.row("TRUNCATE policies, entries, aliases")
    assert len(seen) == 10


async def test_a_revision_grows_even_where_the_clock_went_back(stores: Stores) -> None:
    await stores.admin.save_policy(TENANT, POLICY, Policy())
    await stores.database.row("UPDATE policies SET revision = revision + 3600000000")
    revisions = [(await get(stores)).revision]
    await stores.admin.save_policy(TENANT, POLICY, Policy())
    revisions.append((await get(stores)).revision)
    await stores.admin.purge(Selection(TENANT, POLICY), dry_run=False)
    revisions.append((await get(stores)).revision)
    await stores.admin.delete_policy(TENANT, POLICY)
    saved, _ = await stores.admin.save_policy(TENANT, POLICY, Policy())
    assert [*revisions, saved.revision - 1] == list(range(revisions[0], revisions[0] + 4))


async def test_fields_of_a_newer_release_are_passed_over(stores: Stores) -> None:
    await stores.admin.save_policy(TENANT, POLICY, Policy(top_k=9))
    await stores.database.row("""UPDATE policies SET document = document || '{"later": [1]}'""")
    assert (await get(stores)).policy.top_k == 9


@pytest.mark.parametrize("text", ["\U0001f600", "'; DROP TABLE policies; --", "%s $1 {0}"])
async def test_no_text_is_ever_read_as_sql(stores: Stores, text: str) -> None:
    await stores.admin.save_policy(text, text, Policy(name=text))
    (row,) = await stores.admin.policies(text)
    assert (row.policy.id, row.policy.name) == (text, text)


async def test_counts_tell_what_each_policy_holds(stores: Stores) -> None:
    for policy_id in (POLICY, "empty"):
        await stores.admin.save_policy(TENANT, policy_id, Policy())
    first = await stores.entries.put(new("a", vector=unit(1)))
    await stores.entries.put(new("b"))
    assert first.entry_id
    empty, full = await stores.admin.counts(TENANT)
    assert (empty.policy_id, empty.entries, empty.aliases, empty.body_bytes) == ("empty", 0, 0, 0)
    assert empty.oldest_created_at is None
    assert (full.policy_id, full.entries) == (POLICY, 2)
    assert full.body_bytes == 2 * len(new().answer.body)
    (candidate,) = (await stores.entries.find_exact(exact("a"))).candidates
    assert full.oldest_created_at == candidate.created_at
