"""Of the candidates of a search one answer is read at most: the one that is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cachesvc.core.model import Answer
from cachesvc.store.base import UNREAD, Place
from cachesvc.store.sql import statement
from tests.postgres import POLICY, TENANT
from tests.store.entries import PLACE, age, near, nearest, new, save, unit

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.core.model import Candidate
from tests.postgres import Stores

QUERY = unit(1)


async def put_near(stores: Stores, *cosines: float) -> list[UUID]:
    """An entry at each of these cosines to QUERY; its answer is its number."""
    await save(stores, 3600)
    ids = []
    for number, cosine in enumerate(cosines):
        entry = new(
            str(number),
            vector=near(QUERY, cosine, number),
            answer=Answer(str(number).encode(), None, number, number),
        )
        stored = await stores.entries.put(entry)
        assert stored.entry_id
        ids.append(stored.entry_id)
    return ids


async def candidates(stores: Stores, served_from: float) -> tuple[Candidate, ...]:
    query = nearest(QUERY, served_from=served_from)
    return (await stores.entries.find_nearest(query)).candidates


async def test_only_the_nearest_comes_with_its_answer(stores: Stores) -> None:
    await put_near(stores, 0.93, 0.99, 0.96)
    found = await candidates(stores, 0.9)
    assert [candidate.answer for candidate in found] == [Answer(b"1", None, 1, 1), UNREAD, UNREAD]
    assert [candidate.answer is UNREAD for candidate in found] == [False, True, True]


async def test_what_is_not_near_enough_is_not_read(stores: Stores) -> None:
    await put_near(stores, 0.8, 0.7)
    assert all(candidate.answer is UNREAD for candidate in await candidates(stores, 0.9))
    assert (await candidates(stores, 0.75))[0].answer is not UNREAD


async def test_of_equal_ones_the_newest_comes_with_its_answer(stores: Stores) -> None:
    ids = await put_near(stores, 0.95, 0.95, 0.95)
    for entry_id in ids:
        await stores.database.row(
            "UPDATE entries SET embedding = (SELECT embedding FROM entries LIMIT 1), "
            "created_at = now() WHERE id = $1",
            entry_id,
        )
    found = await candidates(stores, 0.9)
    assert found[0].entry_id == ids[-1]
    assert [candidate.answer is UNREAD for candidate in found] == [False, True, True]


async def test_an_empty_answer_is_an_answer(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("a", vector=QUERY, answer=Answer(b"", None)))
    (candidate,) = await candidates(stores, 0.9)
    assert candidate.answer == Answer(b"", None)
    assert candidate.answer is not UNREAD


async def test_the_answer_of_any_candidate_can_be_read(stores: Stores) -> None:
    for number, entry_id in enumerate(await put_near(stores, 0.93, 0.99)):
        answer = await stores.entries.answer(PLACE, entry_id)
        assert answer == Answer(str(number).encode(), None, number, number)
        for place in (
            Place(TENANT, POLICY, "elsewhere"),
            Place(TENANT, "another", PLACE.scope),
            Place("globex", POLICY, PLACE.scope),
        ):
            assert await stores.entries.answer(place, entry_id) is None


@pytest.mark.parametrize("death", ["expiry", "lower ttl", "purge", "quarantine", "no policy"])
async def test_what_does_not_live_any_more_is_not_read(stores: Stores, death: str) -> None:
    (entry_id,) = await put_near(stores, 0.99)
    assert await stores.entries.answer(PLACE, entry_id) is not None
    if death == "expiry":
        await age(stores, 3601)
    elif death == "lower ttl":
        await age(stores, 60)
        await save(stores, 3600, 30)
        assert await stores.entries.answer(PLACE, entry_id) is None
        await save(stores, 3600)
    elif death == "quarantine":
        await stores.database.row("UPDATE entries SET quarantined_at = now()")
    elif death == "purge":
        # As it is between the two halves of a purge: the row is still there.
        await stores.database.rows(statement("raise_generation"), TENANT, POLICY, None, True)
        (row,) = await stores.database.rows("SELECT id FROM entries")
        assert row["id"] == entry_id
    else:
        await stores.database.row("UPDATE policies SET document = NULL")
    assert await stores.entries.answer(PLACE, entry_id) is None
