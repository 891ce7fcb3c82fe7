"""A cell that is searched often answers from memory, as the database would."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from msgspec import structs

from cachesvc.core.policy import Policy
from cachesvc.errors import NotFound
from cachesvc.store.base import UNREAD, Place
from tests.postgres import POLICY, TENANT, Stores
from tests.store.cells_in_memory import SEARCHES, Hot, put
from tests.store.entries import ANSWER, near, nearest, new, save, unit


async def test_after_some_searches_new_wordings_take_none(hot: Hot) -> None:
    ids = {seed: await put(hot, seed) for seed in range(5)}
    await hot.warm(1)
    searches = hot.counted.searches
    for seed in (*ids, *ids):
        assert await hot.best(seed) == ids[seed]
    assert hot.counted.searches == searches
    assert hot.store.hits["semantic"] == 10
    assert hot.store.cells.reads["kept"] == 1


async def test_an_answer_is_read_once(hot: Hot) -> None:
    first = await put(hot, 1)
    await hot.warm(1)
    query = hot.wording(1)
    assert hot.store.recall(query) is None
    assert (await hot.store.find_nearest(query)).candidates[0].answer is UNREAD
    answers = hot.counted.answers
    for _ in range(3):
        assert await hot.store.answer(query.place, first) == ANSWER
    assert hot.counted.answers == answers + 1
    recalled = hot.store.recall(hot.wording(1))
    assert recalled is not None
    assert recalled.candidates[0].answer == ANSWER


async def test_what_is_put_here_is_found_at_once(hot: Hot) -> None:
    await put(hot, 1)
    await hot.warm(1)
    for number in range(40):
        nearer = near(unit(1), 0.96 + number / 1000)
        stored = await hot.store.put(new(f"nearer {number}", vector=nearer))
        query = structs.replace(nearest(nearer), served_from=0.9)
        assert (await hot.store.find_nearest(query)).candidates[0].entry_id == stored.entry_id


async def test_what_another_replica_puts_is_found_where_memory_has_nothing(
    hot: Hot, stores: Stores
) -> None:
    await put(hot, 1)
    await hot.warm(1)
    stored = await stores.entries.put(new("elsewhere", vector=unit(2)))
    assert await hot.best(2) == stored.entry_id


async def test_what_replaces_another_is_served_instead(hot: Hot) -> None:
    old = await put(hot, 1, "a")
    await hot.warm(1)
    for _ in range(3):
        newer = await put(hot, 1, "a")
        assert newer != old
        assert await hot.best(1) == newer


@pytest.mark.parametrize("change", ["purge", "verdict", "anything"])
async def test_what_went_is_not_served(hot: Hot, stores: Stores, change: str) -> None:
    await put(hot, 1)
    kept = await put(hot, 2)
    await hot.warm(1)
    gone = await hot.best(1)
    await stores.database.row("DELETE FROM entries WHERE id = $1 RETURNING id", gone)
    heard = {"purge": [TENANT, POLICY], "verdict": [TENANT, POLICY, [str(gone)]]}
    hot.store.heard(json.dumps(heard[change]) if change in heard else None)
    assert gone not in {
        one.entry_id for one in (await hot.store.find_nearest(hot.wording(1))).candidates
    }
    assert await hot.best(2) == kept


async def test_what_went_unheard_is_asked_for_no_more(hot: Hot, stores: Stores) -> None:
    """As where it was evicted: nobody is told, and what is next may have been put meanwhile."""
    gone = await put(hot, 1)
    await hot.warm(1)
    second = await hot.store.put(new("second", vector=near(unit(1), 0.99)))
    await stores.database.row("DELETE FROM entries WHERE id = $1 RETURNING id", gone)
    query = structs.replace(nearest(unit(1)), served_from=0.9)
    assert (await hot.store.find_nearest(query)).candidates[0].entry_id == gone
    assert await hot.store.answer(query.place, gone) is None
    assert (await hot.store.find_nearest(query)).candidates[0].entry_id == second.entry_id


async def test_cells_are_apart(hot: Hot, stores: Stores) -> None:
    """Of tenant, policy, scope, space, partition: whatever differs, nothing is shared."""
    await stores.admin.save_policy("other", POLICY, Policy(sharing="shared"))
    await stores.admin.save_policy(TENANT, "second", Policy(sharing="shared"))
    places: list[dict[str, Any]] = [
        {"place": Place(TENANT, POLICY, "shared")},
        {"place": Place("other", POLICY, "shared")},
        {"place": Place(TENANT, "second", "shared")},
        {"place": Place(TENANT, POLICY, "alice")},
        {"space": "another"},
        {"partition": b"p" * 32},
    ]
    ids = []
    for number, where in enumerate(places):
        entry = dataclasses.replace(new(f"{number}", vector=unit(1)), **where)
        stored = await hot.store.put(entry)
        ids.append(stored.entry_id)
    for where in places:
        await hot.warm(1, **where)
    for where, entry_id in zip(places, ids, strict=True):
        found = await hot.store.find_nearest(hot.wording(1, **where))
        assert [one.entry_id for one in found.candidates] == [entry_id]
    assert hot.store.cells.reads["kept"] == len(places)


async def test_a_search_for_young_answers_asks_the_database(hot: Hot) -> None:
    await put(hot, 1)
    await hot.warm(1)
    searches = hot.counted.searches
    await hot.best(1, max_age_seconds=3600.0)
    assert hot.counted.searches == searches + 1


async def test_misses_are_never_told_from_memory(hot: Hot) -> None:
    await put(hot, 1)
    await hot.warm(1)
    searches = hot.counted.searches
    assert (await hot.store.find_nearest(hot.wording(1, 0.5))).candidates
    assert (await hot.store.find_nearest(hot.wording(7))).candidates
    assert hot.counted.searches == searches + 2


async def test_without_trust_nothing_is_told_and_nothing_read(stores: Stores) -> None:
    """Nobody listens: what other replicas change is not heard."""
    await save(stores, 3600)
    hot = Hot(stores)
    await put(hot, 1)
    for _ in range(3 * SEARCHES):
        await hot.best(1)
    assert (hot.counted.searches, hot.counted.reads) == (3 * SEARCHES, 0)


async def test_a_policy_that_is_gone_is_told(hot: Hot, stores: Stores) -> None:
    await put(hot, 1)
    for _ in range(SEARCHES):
        await hot.best(1)
    await stores.admin.delete_policy(TENANT, POLICY)
    for _ in range(3):
        with pytest.raises(NotFound):
            await hot.best(1)
    assert hot.counted.reads == 1
