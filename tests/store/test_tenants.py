"""Two tenants never see, change or remove each other's entries, through any verb."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from msgspec import structs

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.errors import NotFound
from cachesvc.store import sql
from cachesvc.store.base import UNREAD, Alias, ExactQuery, NearestQuery, NewEntry, Place, Selection
from tests.store.entries import key, unit

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.postgres import Stores

TENANTS = ("acme", "globex", "acme ", "ACME", "")
POLICIES = ("p", "q")
SCOPES = ("shared", "alice")
NAMES = ("a", "b", "c")
# The server itself, the schema, and the sweep, which goes from policy to policy of every tenant.
ACROSS = {
    *(
        "be_patient",
        "take_your_time",
        "array_types",
        "vector_schema",
        "pgvector_version",
        "every_policy",
    ),
    *("limited_policies", "every_tenant", "split_tenants", "beat", "own_session", "is_distributed"),
    *("written", "replayed"),
    *("revision_table", "revision", "indexed_dimensions", "lock_index"),
    *("index_valid", "drop_index", "create_index"),
    *("policies_with_dead", "our_indexes", "index_progress", "vacuum", "newer_pgvector"),
    *("table_conditions", "index_conditions", "dimensions_in_use"),
}


async def test_every_statement_on_data_names_the_tenant() -> None:
    for name in set(sql.names()) - ACROSS:
        text = sql.statement(name)
        assert any(part in text for part in ("tenant = $1", "VALUES ($1,", "\nSELECT $1,")), name
    for name in sql.plurals():
        assert "tenant = $1" in sql.plural(name).many


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_a_tenant_sees_its_own_answers_only(
    stores: Stores, seed: int
) -> None:
    dice = random.Random(seed)
    for tenant in TENANTS:
        for policy_id in POLICIES:
            await stores.admin.save_policy(tenant, policy_id, Policy())
    ids: list[UUID] = [uuid4()]
    for _ in range(150):
        place = Place(dice.choice(TENANTS), dice.choice(POLICIES), dice.choice(SCOPES))
        await act(stores, dice, place, ids)
        await check(stores, dice, place)
    # All at once, so that many are asked for in one statement.
    everywhere = [Place(t, p, s) for t in TENANTS for p in POLICIES for s in SCOPES]
    asked = [(place, name) for place in everywhere for name in NAMES] * 2
    dice.shuffle(asked)
    queries = [ExactQuery(place, key(name)) for place, name in asked]
    found = await asyncio.gather(*map(stores.entries.find_exact, queries))
    assert any(each.candidates for each in found)
    for (place, _), each in zip(asked, found, strict=True):
        assert all(one.answer.body == repr(place).encode() for one in each.candidates)


async def act(stores: Stores, dice: random.Random, place: Place, ids: list[UUID]) -> None:
    """One change in `place`; it may name entries of anybody."""
    verb = dice.choice(["put"] * 8 + ["alias"] * 4 + ["purge", "purge entry", "delete", "save"])
    name, other = dice.choice(NAMES), dice.choice(ids)
    if verb == "put":
        stored = await stores.entries.put(
            NewEntry(
                place,
                Answer(repr(place).encode(), None),
                exact_key=key(name) if dice.random() < 0.7 else None,
                vector=unit(1),
                prompt_text=name,
            )
        )
        ids.extend([stored.entry_id] if stored.entry_id else [])
    elif verb == "alias":
        await stores.entries.add_aliases([Alias(place, key(dice.choice(NAMES)), other, 0.95)])
    elif verb == "purge":
        selection = Selection(place.tenant, scope=place.scope, prompt_text=name)
        await unchanged_elsewhere(
            stores, place.tenant, stores.admin.purge(selection, dry_run=False)
        )
    elif verb == "purge entry":
        selection = Selection(place.tenant, entry_id=other)
        await unchanged_elsewhere(
            stores, place.tenant, stores.admin.purge(selection, dry_run=False)
        )
    elif verb == "delete":
        gone = stores.admin.delete_policy(place.tenant, place.policy_id)
        await unchanged_elsewhere(stores, place.tenant, gone)
        await stores.admin.save_policy(place.tenant, place.policy_id, Policy())
    else:
        saved = stores.admin.save_policy(place.tenant, place.policy_id, Policy(top_k=3))
        await unchanged_elsewhere(stores, place.tenant, saved)


async def unchanged_elsewhere(stores: Stores, tenant: str, change: Awaitable[Any]) -> None:
    others = [t for t in TENANTS if t != tenant]
    before = [(await stores.admin.counts(t), await stores.admin.policies(t)) for t in others]
    await change
    after = [(await stores.admin.counts(t), await stores.admin.policies(t)) for t in others]
    assert after == before


async def check(stores: Stores, dice: random.Random, place: Place) -> None:
    """Every answer this place can get says that it was put there."""
    for name in NAMES:
        found = await stores.entries.find_exact(ExactQuery(place, key(name)))
        assert all(c.answer.body == repr(place).encode() for c in found.candidates)
    query = NearestQuery(place, b"", "", unit(1), top_k=32)
    found = await stores.entries.find_nearest(query)
    for candidate in found.candidates:
        answer = await stores.entries.answer(place, candidate.entry_id)
        assert answer is not None
        assert answer.body == repr(place).encode()
        assert candidate.answer in (answer, UNREAD)
        row = await stores.admin.entry(place.tenant, candidate.entry_id)
        assert row is not None
        assert row.place == place
        stranger = dice.choice([t for t in TENANTS if t != place.tenant])
        assert await stores.admin.entry(stranger, candidate.entry_id) is None
        elsewhere = structs.replace(place, tenant=stranger)
        assert await stores.entries.answer(elsewhere, candidate.entry_id) is None


async def test_a_policy_of_another_tenant_does_not_exist(stores: Stores) -> None:
    await stores.admin.save_policy("acme", "p", Policy())
    with pytest.raises(NotFound):
        await stores.entries.find_exact(ExactQuery(Place("globex", "p", "shared"), key("a")))
