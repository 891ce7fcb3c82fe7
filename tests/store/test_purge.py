"""A purge acts at once, on exactly what it selects, and nothing put before it comes back."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.errors import NotFound
from cachesvc.store import admin
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Alias, Place, Selection
from cachesvc.store.postgres import PostgresStore, _values
from cachesvc.store.sql import statement
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, age, exact, key, nearest, new, save, unit
from tests.store.waiting import until, waits_for_a_lock

Pair = tuple[PostgresStore, PostgresAdmin]


async def generation(store: Pair, policy_id: str = POLICY) -> int:
    row = await store[0].policy(TENANT, policy_id)
    assert row is not None
    return row.generation


async def put(store: Pair, name: str, **fields: object) -> UUID:
    stored = await store[0].put(new(name, vector=unit(1), **fields))
    assert stored.entry_id
    return stored.entry_id


SELECTIONS = {
    "policy": (Selection(TENANT, POLICY), {"first", "second", "tagged", "modelled", "asked"}),
    "scope": (Selection(TENANT, scope="second"), {"second"}),
    "tag": (Selection(TENANT, tags=("red",)), {"tagged"}),
    "tags": (Selection(TENANT, tags=("blue", "red")), {"tagged"}),
    "other tags": (Selection(TENANT, tags=("red", "green")), set()),
    "model": (Selection(TENANT, model="gpt"), {"modelled", "other policy"}),
    "policy and model": (Selection(TENANT, POLICY, model="gpt"), {"modelled"}),
    "prompt": (Selection(TENANT, prompt_text="why?"), {"asked"}),
    "prompt in another scope": (Selection(TENANT, scope="second", prompt_text="why?"), set()),
    "age": (
        Selection(TENANT, older_than_seconds=0),
        {"first", "second", "tagged", "modelled", "asked", "other policy"},
    ),
    "great age": (Selection(TENANT, older_than_seconds=1e10), set()),
    "entry of nobody": (Selection(TENANT, entry_id=uuid4()), set()),
}


@pytest.mark.parametrize("case", SELECTIONS)
async def test_a_purge_removes_exactly_what_it_selects(store: Pair, case: str) -> None:
    selection, expected = SELECTIONS[case]
    other, second = Place(TENANT, "other", "shared"), Place(TENANT, POLICY, "second")
    await store[1].save_policy(TENANT, "other", Policy())
    ids = {
        await put(store, "first"): "first",
        await put(store, "second", place=second): "second",
        await put(store, "tagged", tags=("red", "blue")): "tagged",
        await put(store, "modelled", model="gpt"): "modelled",
        await put(store, "asked", prompt_text="why?"): "asked",
        await put(store, "modelled", place=other, model="gpt"): "other policy",
    }
    before = await generation(store), await generation(store, "other")
    assert await store[1].purge(selection, dry_run=True) == (len(expected), 0)
    assert (await generation(store), await generation(store, "other")) == before
    assert await store[1].purge(selection, dry_run=False) == (len(expected), len(expected))
    gone = {name for entry_id, name in ids.items() if not await store[1].entry(TENANT, entry_id)}
    assert gone == expected
    assert await store[1].purge(selection, dry_run=False) == (0, 0)


async def test_one_entry_can_be_purged(store: Pair) -> None:
    first, second = await put(store, "a"), await put(store, "b")
    await store[1].save_policy(TENANT, "other", Policy())
    assert await store[1].purge(Selection(TENANT, entry_id=first), dry_run=False) == (1, 1)
    assert await store[1].entry(TENANT, first) is None
    assert await store[1].entry(TENANT, second) is not None
    assert (await generation(store), await generation(store, "other")) == (2, 1)


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_purge_of_an_unknown_policy_is_not_found(store: Pair, dry_run: bool) -> None:
    for selection in (Selection(TENANT, "never"), Selection("globex", POLICY)):
        with pytest.raises(NotFound, match="cache_policy not found"):
            await store[1].purge(selection, dry_run=dry_run)


async def test_every_real_purge_raises_the_generation_even_when_nothing_matches(
    store: Pair,
) -> None:
    await store[1].save_policy(TENANT, "other", Policy())
    row = await store[0].policy(TENANT, POLICY)
    assert row is not None
    await store[1].purge(Selection(TENANT, POLICY, scope="nobody"), dry_run=False)
    assert (await generation(store), await generation(store, "other")) == (2, 1)
    await store[1].purge(Selection(TENANT, model="none"), dry_run=False)
    assert (await generation(store), await generation(store, "other")) == (3, 2)
    after = await store[0].policy(TENANT, POLICY)
    assert after is not None
    assert after.revision > row.revision


async def test_a_put_that_knew_an_older_generation_is_dropped(store: Pair) -> None:
    await store[1].purge(Selection(TENANT, POLICY), dry_run=False)
    stored = await store[0].put(new("a", vector=unit(1), generation=1))
    assert (stored.entry_id, stored.expires_at, stored.current) == (None, None, 2)
    assert not stored.newer
    assert not (await store[0].find_exact(exact("a"))).candidates
    for current in (2, None):
        assert (await store[0].put(new("a", generation=current))).entry_id


async def test_a_put_that_names_a_generation_of_the_future_stores_nothing(store: Pair) -> None:
    stored = await store[0].put(new("a", generation=2))
    assert (stored.entry_id, stored.newer, stored.current) == (None, True, 1)
    assert not (await store[0].find_exact(exact("a"))).candidates


async def test_a_dropped_put_leaves_the_stored_entry_and_its_aliases(store: Pair) -> None:
    entry_id = await put(store, "a")
    await store[0].add_aliases([Alias(PLACE, key("b"), entry_id, 0.95)])
    await store[1].purge(Selection(TENANT, POLICY, scope="nobody"), dry_run=False)
    for name in ("a", "b"):
        assert (await store[0].put(new(name, generation=1))).entry_id is None
        assert (await store[0].find_exact(exact(name))).candidates[0].entry_id == entry_id


async def test_a_purged_policy_shows_nothing_even_before_its_rows_are_gone(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    stored = await stores.entries.put(new("a", vector=unit(1)))
    assert stored.entry_id
    await stores.entries.add_aliases([Alias(PLACE, key("b"), stored.entry_id, 0.95)])
    # The first half of a purge alone, as if the process had died after it.
    await stores.database.row("UPDATE policies SET generation = 2, oldest_generation = 2")
    for name in ("a", "b"):
        found = await stores.entries.find_exact(exact(name))
        assert (found.candidates, found.dead) == ((), None)
    assert not (await stores.entries.find_nearest(nearest(unit(1)))).candidates
    assert await stores.admin.entry(TENANT, stored.entry_id) is None
    assert (await stores.admin.counts(TENANT))[0].entries == 0
    await stores.entries.add_aliases([Alias(PLACE, key("c"), stored.entry_id, 0.95)])
    assert not (await stores.entries.find_exact(exact("c"))).candidates
    await stores.database.row("UPDATE policies SET purged_at = now()")
    assert await stores.admin.remove_expired(10) == 1


async def test_a_purge_spares_what_was_put_after_it_began(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "BATCH", 1)
    await save(stores, 3600)
    await stores.entries.put(new("old", vector=unit(1)))
    async with stores.database.connection() as other, other.transaction():
        # Holds the old entry, so that the purge has raised the generation but cannot delete yet.
        await other.execute("SELECT FROM entries FOR UPDATE")
        purge = asyncio.create_task(
            stores.admin.purge(Selection(TENANT, older_than_seconds=0), dry_run=False)
        )
        await until(lambda: waits_for_a_lock(stores))
        for n in range(30):
            await stores.entries.put(new(str(n)))
    assert await purge == (1, 1)
    assert (await stores.admin.counts(TENANT))[0].entries == 30


@pytest.mark.parametrize("name", ["a", None], ids=["exact key", "prompt"])
@pytest.mark.parametrize(
    "selection", [Selection(TENANT, POLICY), Selection(TENANT, scope="shared")], ids=["all", "some"]
)
async def test_a_purge_waits_for_puts_that_saw_the_old_generation(
    stores: Stores, name: str | None, selection: Selection
) -> None:
    await save(stores, 3600)
    verb = "put_by_prompt" if name is None else "put_by_exact_key"
    async with stores.database.connection() as putting, putting.transaction():
        values = *await _values(new(name, vector=unit(1), generation=1), b"cell"), None
        assert await putting.fetchrow(statement(verb), *values)
        purge = asyncio.create_task(stores.admin.purge(selection, dry_run=False))
        await until(lambda: waits_for_a_lock(stores))
    assert await purge == (1, 1)
    assert not (await stores.entries.find_nearest(nearest(unit(1)))).candidates


@pytest.mark.parametrize("name", ["a", None], ids=["exact key", "prompt"])
async def test_a_put_that_waited_for_a_purge_is_stale(stores: Stores, name: str | None) -> None:
    await save(stores, 3600)
    async with stores.database.connection() as purging, purging.transaction():
        await purging.fetch(statement("raise_generation"), TENANT, POLICY, None, False)
        puts = [
            asyncio.create_task(stores.entries.put(new(name, vector=unit(1), generation=known)))
            for known in (1, None)
        ]
        await until(lambda: waits_for_a_lock(stores))
    stale, current = await asyncio.gather(*puts)
    assert (stale.entry_id, stale.current) == (None, 2)
    assert current.entry_id
    row = await stores.admin.entry(TENANT, current.entry_id)
    assert row is not None
    assert row.generation == 2


async def test_a_purge_takes_its_policies_in_one_order(stores: Stores) -> None:
    for policy_id in ("c", "a", "b"):
        await stores.admin.save_policy(TENANT, policy_id, Policy())
    lock = "SELECT FROM policies WHERE id = $1 FOR UPDATE NOWAIT"
    async with stores.database.connection() as other, other.transaction():
        await other.fetch(lock, "a")
        purge = asyncio.create_task(stores.admin.purge(Selection(TENANT, model=""), dry_run=False))
        await until(lambda: waits_for_a_lock(stores))
        for later in ("b", "c"):
            await other.fetch(lock, later)
    await purge


async def test_no_put_under_way_survives_a_purge(store: Pair) -> None:
    async def put_many(worker: int) -> None:
        for n in range(40):
            known = await generation(store)
            body = str(known).encode()
            entry = new(f"{worker}.{n}", answer=Answer(body, None), generation=known)
            await store[0].put(entry)

    async def purge() -> None:
        for _ in range(10):
            await store[1].purge(Selection(TENANT, POLICY), dry_run=False)

    await asyncio.gather(*map(put_many, range(3)), purge())
    current = await generation(store)
    for worker in range(3):
        for n in range(40):
            for candidate in (await store[0].find_exact(exact(f"{worker}.{n}"))).candidates:
                assert int(candidate.answer.body) == current


async def test_purges_and_puts_at_once_never_wait_in_a_circle(store: Pair) -> None:
    policies = [f"p{n}" for n in range(4)]
    for policy_id in policies:
        await store[1].save_policy(TENANT, policy_id, Policy())

    async def put_many(policy_id: str) -> None:
        for n in range(30):
            place = Place(TENANT, policy_id, "shared")
            stored = await store[0].put(new(str(n % 5), place=place, vector=unit(1)))
            if stored.entry_id:
                await store[0].add_aliases(
                    [Alias(place, key(f"alias {n % 3}"), stored.entry_id, 0.95)]
                )

    async def purge(selection: Selection) -> None:
        for _ in range(15):
            await store[1].purge(selection, dry_run=False)

    await asyncio.gather(
        *map(put_many, policies),
        purge(Selection(TENANT, scope="shared")),
        purge(Selection(TENANT, model="")),
        purge(Selection(TENANT, "p2")),
        purge(Selection(TENANT, "p1", scope="shared")),
    )


async def test_more_entries_than_one_batch_are_purged(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("seed"))
    columns = "tenant, policy_id, scope, space, partition, prompt_hash, body, prompt_text, "
    columns += "prompt_tokens, completion_tokens, model, tags, generation, provenance, "
    columns += "created_at, exact_expires_at"
    await stores.database.row(
        f"INSERT INTO entries (id, exact_key, {columns}) "
        f"SELECT gen_random_uuid(), n::text::bytea, {columns} FROM entries, "
        "generate_series(1, 2500) n"
    )
    assert await stores.admin.purge(Selection(TENANT, scope="shared"), dry_run=False) == (
        2501,
        2501,
    )
    assert (await stores.admin.counts(TENANT))[0].entries == 0


async def test_only_live_entries_count_as_matched(stores: Stores) -> None:
    await save(stores, 100)
    await stores.entries.put(new("old"))
    await age(stores, 101)
    await stores.entries.put(new("young"))
    selection = Selection(TENANT, older_than_seconds=0)
    assert await stores.admin.purge(selection, dry_run=True) == (1, 0)
    assert await stores.admin.purge(selection, dry_run=False) == (1, 1)
    (row,) = await stores.database.rows("SELECT count(*) FROM entries")
    assert row["count"] == 0
