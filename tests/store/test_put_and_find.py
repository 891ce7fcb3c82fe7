"""What is put is found, byte for byte: by its key, by its vector, and by nothing else."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from msgspec import structs

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.core.vectors import similarity
from cachesvc.errors import Invalid, NotFound
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Place
from cachesvc.store.postgres import PostgresStore
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import ANSWER, PLACE, exact, key, near, nearest, new, unit

Pair = tuple[PostgresStore, PostgresAdmin]


async def test_an_answer_is_found_by_its_exact_key_byte_for_byte(store: Pair) -> None:
    body = bytes(range(256)) * 40
    answer = Answer(body, "text/event-stream; charset=utf-8", 3, 2**32 - 1)
    stored = await store[0].put(new("a", answer=answer, prompt_text="a\x00\U0001f600b"))
    found = await store[0].find_exact(exact("a"))
    (candidate,) = found.candidates
    assert candidate.answer == answer
    assert candidate.entry_id == stored.entry_id
    assert candidate.similarity is None
    assert not candidate.alias
    assert candidate.expires_at == stored.expires_at
    assert found.dead is None
    row = await store[1].entry(TENANT, candidate.entry_id)
    assert row is not None
    assert row.prompt_text == "a\x00\U0001f600b"


async def test_an_answer_put_as_response_has_no_media_type(store: Pair) -> None:
    await store[0].put(new("a", answer=Answer(b'{"a":1e5}', None)))
    (candidate,) = (await store[0].find_exact(exact("a"))).candidates
    assert candidate.answer == Answer(b'{"a":1e5}', None)


async def test_nothing_is_found_where_nothing_was_put(store: Pair) -> None:
    for found in (
        await store[0].find_exact(exact("a")),
        await store[0].find_nearest(nearest(unit(1))),
    ):
        assert found.candidates == ()
        assert found.dead is None
        assert found.generation == 1


@pytest.mark.parametrize("dimensions", [1, 2, 384, 385, 512, 768, 1024, 1536, 3072, 3984])
async def test_every_number_of_dimensions_can_be_searched(store: Pair, dimensions: int) -> None:
    vector = unit(1, dimensions)
    await store[0].put(new(vector=vector, prompt_text="near"))
    (candidate,) = (await store[0].find_nearest(nearest(vector))).candidates
    assert candidate.similarity == pytest.approx(1.0, abs=2e-6)


async def test_similarity_is_the_cosine_with_the_stored_halves_rounded_to_six_decimals(
    store: Pair,
) -> None:
    stored = unit(1)
    await store[0].put(new(vector=stored))
    query = near(stored, 0.913)
    (candidate,) = (await store[0].find_nearest(nearest(query))).candidates
    halves = stored.astype(np.float16).astype(np.float64)
    assert candidate.similarity == similarity(query, halves)
    assert candidate.similarity == pytest.approx(0.913, abs=1e-4)
    assert candidate.similarity == round(candidate.similarity, 6)


async def test_the_nearest_come_first_and_no_more_than_asked_for(store: Pair) -> None:
    query = unit(1)
    cosines = [0.5, 0.99, 0.7, 0.95, 0.2]
    for n, cosine in enumerate(cosines):
        await store[0].put(new(vector=near(query, cosine, n), prompt_text=str(n)))
    found = (await store[0].find_nearest(nearest(query, top_k=3))).candidates
    similarities = [candidate.similarity for candidate in found]
    assert similarities == pytest.approx([0.99, 0.95, 0.7], abs=1e-4)


@pytest.mark.parametrize("change", ["+ interval '1 s' WHERE id =", "- interval '1 s' WHERE id <>"])
async def test_of_equal_ones_the_newest_comes_first(stores: Stores, change: str) -> None:
    await stores.admin.save_policy(TENANT, POLICY, Policy())
    ids = [(await stores.entries.put(new(str(n), vector=unit(1)))).entry_id for n in range(3)]
    newest = ids[1]
    await stores.database.row(f"UPDATE entries SET created_at = created_at {change} $1", newest)
    found = (await stores.entries.find_nearest(nearest(unit(1), top_k=5))).candidates
    assert len(found) == 3
    assert found[0].entry_id == newest


async def test_a_place_space_partition_or_dimension_is_matched_by_equality(store: Pair) -> None:
    partition = key("partition")
    await store[0].put(new("a", vector=unit(1), space="s", partition=partition))
    here: dict[str, Any] = {"space": "s", "partition": partition}
    assert (await store[0].find_nearest(nearest(unit(1), **here))).candidates
    for place in (Place(TENANT, POLICY, ""), Place(TENANT, POLICY, "shared ")):
        assert not (await store[0].find_nearest(nearest(unit(1), place, **here))).candidates
        assert not (await store[0].find_exact(exact("a", place))).candidates
    others: list[dict[str, Any]] = [{"space": "S"}, {"space": ""}, {"partition": b""}]
    for other in (*others, {"partition": key("x")}):
        assert not (await store[0].find_nearest(nearest(unit(1), **{**here, **other}))).candidates
    assert not (await store[0].find_nearest(nearest(unit(1, 383), **here))).candidates


async def test_a_put_of_the_same_exact_key_replaces_the_entry_in_both_tiers(store: Pair) -> None:
    first = await store[0].put(new("a", vector=unit(1)))
    second = await store[0].put(new("a", vector=unit(2), answer=Answer(b"2", None)))
    assert first.entry_id != second.entry_id
    (candidate,) = (await store[0].find_exact(exact("a"))).candidates
    assert (candidate.entry_id, candidate.answer.body) == (second.entry_id, b"2")
    found = (await store[0].find_nearest(nearest(unit(1)))).candidates
    assert [candidate.entry_id for candidate in found] == [second.entry_id]
    assert await store[1].entry(TENANT, first.entry_id or uuid4()) is None


async def test_a_put_without_a_vector_removes_the_semantic_twin(store: Pair) -> None:
    await store[0].put(new("a", vector=unit(1)))
    await store[0].put(new("a"))
    assert (await store[0].find_exact(exact("a"))).candidates
    assert not (await store[0].find_nearest(nearest(unit(1)))).candidates


async def test_without_exact_key_the_prompt_makes_two_puts_equal(store: Pair) -> None:
    for body, prompt, space, partition in (
        (b"1", "p", "", b""),
        (b"2", "p", "", b""),  # replaces the first
        (b"3", "q", "", b""),
        (b"4", "p", "s", b""),
        (b"5", "p", "", key("partition")),
    ):
        await store[0].put(
            new(
                vector=unit(1),
                answer=Answer(body, None),
                prompt_text=prompt,
                space=space,
                partition=partition,
            )
        )
    await store[0].put(new(vector=unit(1, 8), answer=Answer(b"6", None), prompt_text="p"))
    found = (await store[0].find_nearest(nearest(unit(1), top_k=9))).candidates
    answers = [await store[0].answer(PLACE, candidate.entry_id) for candidate in found]
    assert sorted(answer.body for answer in answers if answer) == [b"2", b"3"]
    (count,) = await store[1].counts(TENANT)
    assert count.entries == 5


async def test_an_entry_with_an_exact_key_and_one_without_do_not_replace_each_other(
    store: Pair,
) -> None:
    await store[0].put(new("a", vector=unit(1), prompt_text="p"))
    await store[0].put(new(vector=unit(1), prompt_text="p"))
    assert len((await store[0].find_nearest(nearest(unit(1)))).candidates) == 2


@pytest.mark.parametrize("name", ["a", None], ids=["exact key", "prompt"])
async def test_fifty_puts_of_one_entry_at_once_leave_exactly_one(
    store: Pair, name: str | None
) -> None:
    entries = [
        new(name, vector=unit(1), prompt_text="p", answer=Answer(str(n).encode(), None))
        for n in range(50)
    ]
    stored = await asyncio.gather(*map(store[0].put, entries))
    (count,) = await store[1].counts(TENANT)
    assert count.entries == 1
    (candidate,) = (await store[0].find_nearest(nearest(unit(1)))).candidates
    winner = [s.entry_id for s in stored].index(candidate.entry_id)
    assert candidate.answer.body == str(winner).encode()


async def test_an_unknown_or_deleted_policy_is_not_found(store: Pair) -> None:
    gone = Place(TENANT, "gone", "shared")
    await store[1].save_policy(TENANT, "gone", Policy())
    await store[0].put(new("a", place=gone, vector=unit(1)))
    assert await store[1].delete_policy(TENANT, "gone")
    for place in (gone, Place(TENANT, "never", "shared"), Place("other", POLICY, "shared")):
        assert await store[0].policy(place.tenant, place.policy_id) is None
        for verb in (
            store[0].find_exact(exact("a", place)),
            store[0].find_nearest(nearest(unit(1), place)),
            store[0].put(new("a", place=place)),
        ):
            with pytest.raises(NotFound, match="cache_policy not found"):
                await verb


async def test_an_entry_that_no_lookup_could_find_is_refused(store: Pair) -> None:
    with pytest.raises(Invalid, match="embedding or exact_key"):
        await store[0].put(new())


async def test_the_longest_labels_fit_the_indexes(stores: Stores) -> None:
    tenant, policy_id, label = "t" * 128, "p" * 128, "".join(chr(0x1F300 + n) for n in range(256))
    place = Place(tenant, policy_id, label)
    await stores.admin.save_policy(tenant, policy_id, Policy())
    for name in ("a", None):
        labels = {"space": label[::-1], "partition": key("x"), "prompt_text": "p"}
        stored = await stores.entries.put(new(name, place=place, vector=unit(1), **labels))
        assert stored.entry_id


async def test_older_candidates_are_skipped_when_the_caller_says_so(stores: Stores) -> None:
    await stores.admin.save_policy(TENANT, POLICY, Policy())
    await stores.entries.put(new("a", vector=unit(1)))
    await stores.database.row("UPDATE entries SET created_at = created_at - interval '1 minute'")
    for age, expected in ((59.0, 0), (61.0, 1), (0.0, 0), (1e300, 1), (None, 1)):
        found = await stores.entries.find_exact(exact("a", max_age_seconds=age))
        assert len(found.candidates) == expected
        assert found.dead is None
        found = await stores.entries.find_nearest(nearest(unit(1), max_age_seconds=age))
        assert len(found.candidates) == expected


async def test_everything_that_was_put_is_shown_to_the_operator(store: Pair) -> None:
    answer = structs.replace(ANSWER, upstream_ms=12.5)
    stored = await store[0].put(
        new(
            "a",
            vector=unit(1),
            partition=key("partition"),
            space="space",
            prompt_text="question",
            tags=("one", "two"),
            model="gpt",
            answer=answer,
            provenance="proxy",
        )
    )
    assert stored.entry_id
    row = await store[1].entry(TENANT, stored.entry_id)
    assert row is not None
    assert (row.place, row.answer, row.exact_key) == (PLACE, answer, key("a"))
    assert (row.partition, row.space, row.dimensions) == (key("partition"), "space", 384)
    assert (row.prompt_text, row.tags, row.model) == ("question", ("one", "two"), "gpt")
    assert (row.provenance, row.generation) == ("proxy", 1)
    assert (row.state, row.body_bytes) == ("live", len(ANSWER.body))
    assert row.exact_expires_at == row.semantic_expires_at == stored.expires_at
    assert row.aliases == 0
