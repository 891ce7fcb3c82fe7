"""Verdicts and shadow hits are kept per policy, up to a number and an age, and leave with it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from cachesvc.core.policy import Policy
from cachesvc.store import postgres_records
from cachesvc.store.base import Alias, Place, Selection
from cachesvc.store.records import NewVerdict, ShadowHit
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, exact, key, new, save, unit
from tests.store.waiting import until, waits_for_a_lock

if TYPE_CHECKING:
    from collections.abc import Iterable


def hits(prompts: Iterable[str], place: Place = PLACE, age: float = 0.0) -> list[ShadowHit]:
    now = datetime.now(timezone.utc) - timedelta(seconds=age)
    return [
        ShadowHit(place, None, uuid4(), "exact", 1.0, prompt, now + timedelta(milliseconds=n))
        for n, prompt in enumerate(prompts)
    ]


def verdict(entry_id: UUID, *, wrong: bool = True, **fields: object) -> NewVerdict:
    fields.setdefault("lifts", True)
    fields.setdefault("tenant", TENANT)
    return NewVerdict(entry_id=entry_id, scope=None, wrong=wrong, source="me", **fields)  # type: ignore[arg-type]


async def kept(stores: Stores, table: str = "shadow_hits", tenant: str = TENANT) -> list[str]:
    rows = await stores.database.rows(
        f"SELECT prompt_text FROM {table} WHERE tenant = $1 ORDER BY created_at", tenant
    )
    return [row["prompt_text"].decode() for row in rows]


async def put(stores: Stores, name: str = "a") -> UUID:
    stored = await stores.entries.put(new(name, vector=unit(1)))
    assert stored.entry_id
    return stored.entry_id


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of each are kept, for an hour."""
    bounds = dict.fromkeys(postgres_records._KEPT, (3, timedelta(hours=1)))
    monkeypatch.setattr(postgres_records, "_KEPT", bounds)


@pytest.mark.usefixtures("few")
async def test_of_shadow_hits_the_newest_of_each_policy_stay(stores: Stores) -> None:
    await save(stores, 3600)
    for tenant, policy_id in ((TENANT, "other"), ("globex", POLICY)):
        await stores.admin.save_policy(tenant, policy_id, Policy())
    other, stranger = Place(TENANT, "other", "s"), Place("globex", POLICY, "s")
    await stores.records.keep_shadow_hits(
        [*hits("abcde"), *hits("x", other, age=10), *hits("pq", stranger)]
    )
    assert await stores.records.trim() == 2
    assert await stores.records.trim() == 0
    assert await kept(stores) == ["x", "c", "d", "e"]
    assert await kept(stores, tenant="globex") == ["p", "q"]


@pytest.mark.usefixtures("few")
async def test_what_is_old_goes_however_little_there_is(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.records.keep_shadow_hits([*hits("old", age=3601), *hits("y", age=3000)])
    entry = await put(stores)
    for prompt in ("one", "two"):
        await stores.records.give_verdict(verdict(entry, prompt_text=prompt))
    await stores.database.row(
        "UPDATE verdicts SET created_at = created_at - interval '2 h' WHERE prompt_text = 'one'"
    )
    assert await stores.records.trim() == 4
    assert (await kept(stores), await kept(stores, "verdicts")) == (["y"], ["two"])


@pytest.mark.usefixtures("few")
async def test_of_verdicts_the_newest_stay_and_a_purge_takes_none(stores: Stores) -> None:
    await save(stores, 3600)
    entry = await put(stores)
    for prompt in "abcde":
        assert await stores.records.give_verdict(verdict(entry, prompt_text=prompt))
    await stores.admin.purge(Selection(TENANT, POLICY), dry_run=False)
    assert await stores.records.trim() == 2
    assert await kept(stores, "verdicts") == ["c", "d", "e"]


async def test_records_of_a_policy_that_is_gone_are_swept_and_never_written(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    entry = await put(stores)
    await stores.records.give_verdict(verdict(entry, prompt_text="why?"))
    late = hits("ab")
    await stores.records.keep_shadow_hits(late[:1])
    # A deletion that died after its first statement.
    await stores.database.row("UPDATE policies SET document = NULL, purged_at = now()")
    await stores.records.keep_shadow_hits(late[1:])
    assert await kept(stores) == ["a"]
    assert await stores.records.trim() == 2
    assert await kept(stores) + await kept(stores, "verdicts") == []


async def test_what_a_lookup_of_before_a_purge_saw_is_not_recorded_after_it(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    late = hits("a", age=1)
    await stores.admin.purge(Selection(TENANT, POLICY), dry_run=False)
    await stores.records.keep_shadow_hits(late)
    assert await kept(stores) == []
    assert (await stores.admin.counts(TENANT))[0].shadow_hits == 0


async def test_an_alias_on_its_way_does_not_outlive_a_verdict(stores: Stores) -> None:
    """A verdict that waits for an alias to be written leaves it dead: its entry is quarantined."""
    await save(stores, 3600)
    entry = await put(stores)
    async with stores.database.connection() as aliasing, aliasing.transaction():
        await aliasing.execute("SELECT FROM entries FOR KEY SHARE")
        judging = asyncio.create_task(stores.records.give_verdict(verdict(entry)))
        await until(lambda: waits_for_a_lock(stores))
        await aliasing.execute(
            "INSERT INTO aliases SELECT tenant, policy_id, scope, $1, id, 0.95, now(),"
            " now() + interval '1 h' FROM entries",
            key("b"),
        )
    assert await judging == (POLICY, True)
    found = await stores.entries.find_exact(exact("b"))
    assert (found.candidates, found.dead) == ((), "quarantined")


async def test_a_verdict_of_an_entry_that_is_replaced_meanwhile_hits_nobody(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    entry = await put(stores)
    async with stores.database.connection() as putting, putting.transaction():
        await putting.execute("UPDATE entries SET id = gen_random_uuid()")
        judging = asyncio.create_task(stores.records.give_verdict(verdict(entry)))
        await until(lambda: waits_for_a_lock(stores))
    assert await judging is None
    assert (await stores.entries.find_exact(exact("a"))).candidates


async def test_judging_at_once_never_waits_in_a_circle(stores: Stores) -> None:
    await save(stores, 3600)

    async def judge(worker: int) -> None:
        for n in range(20):
            entry = await put(stores, str(n % 3))
            await stores.entries.add_aliases([Alias(PLACE, key(f"alias {n % 4}"), entry, 0.95)])
            await stores.records.give_verdict(verdict(entry, wrong=(n + worker) % 2 == 0))

    async def purge() -> None:
        for _ in range(10):
            await stores.admin.purge(Selection(TENANT, scope="shared"), dry_run=False)

    await asyncio.gather(*map(judge, range(3)), purge())


async def test_a_stranger_judges_nothing(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.admin.save_policy("globex", POLICY, Policy())
    entry = await put(stores)
    assert await stores.records.give_verdict(verdict(entry, tenant="globex")) is None
    assert (await stores.entries.find_exact(exact("a"))).candidates
    assert await kept(stores, "verdicts") == []
