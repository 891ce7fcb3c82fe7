"""Answers are stored smaller where that pays, and come back byte for byte."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.core.model import Answer
from cachesvc.errors import StoreRefused
from cachesvc.store.base import Alias, Listing, Room
from cachesvc.store.bodies import packed, unpacked
from cachesvc.store.migrate import downgrade
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import exact, near, nearest, new, save, unit

if TYPE_CHECKING:
    from uuid import UUID

_EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
STREAM = b"".join(_EVENT % n for n in range(300)) + b"data: [DONE]\n\n"
NOISE = random.Random(1).randbytes(5000)
FRAME = zstandard.compress(STREAM)  # an answer that is itself a frame
BODIES = {"stream": STREAM, "short": STREAM[:1023], "noise": NOISE, "frame": FRAME, "empty": b""}


@given(st.binary(max_size=300), st.integers(0, 60))
async def test_whatever_is_put_is_what_is_read(piece: bytes, times: int) -> None:
    body = piece * times
    stored, inflated_bytes = await packed(body)
    assert unpacked(stored, inflated_bytes) == body
    assert len(stored) <= len(body)
    assert (inflated_bytes is None) == (stored == body)


async def test_a_stream_is_stored_in_a_tenth_and_what_is_short_or_random_as_it_came() -> None:
    stored, inflated_bytes = await packed(STREAM)
    assert inflated_bytes == len(STREAM)
    assert len(stored) < len(STREAM) / 10
    for name in ("short", "noise", "empty", "frame"):
        assert await packed(BODIES[name]) == (BODIES[name], None)


async def test_a_long_one_does_not_hold_up_the_loop_and_comes_back() -> None:
    body = NOISE * 400  # 2 MB
    stored, inflated_bytes = await packed(body)
    assert len(stored) < len(body)
    assert unpacked(stored, inflated_bytes) == body


@pytest.mark.parametrize(
    ("stored", "inflated_bytes"),
    [
        (FRAME, len(STREAM) - 1),
        (FRAME, len(STREAM) + 1),
        (FRAME[:-1], len(STREAM)),
        (FRAME + b"x", len(STREAM)),
        (NOISE, 100_000),
        (b"", 1),
        # A frame of which only the reading tells the length: refused before it is read.
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10**7)), 5000),
    ],
    ids=["longer", "shorter", "cut", "more", "noise", "empty", "bomb"],
)
def test_what_is_damaged_is_refused_and_never_half_an_answer(
    stored: bytes, inflated_bytes: int
) -> None:
    with pytest.raises(StoreRefused, match="damaged"):
        unpacked(stored, inflated_bytes)


async def put(stores: Stores, name: str, tokens: int = 1) -> UUID:
    answer = Answer(BODIES[name], "text/event-stream", tokens, 0)
    stored = await stores.entries.put(new(name, answer=answer, vector=unit(len(name))))
    assert stored.entry_id
    return stored.entry_id


@pytest.mark.parametrize("name", list(BODIES))
async def test_every_way_to_read_an_answer_gives_what_was_put(stores: Stores, name: str) -> None:
    await save(stores, 3600)
    entry_id = await put(stores, name)
    body, place = BODIES[name], new("x").place
    await stores.entries.add_aliases([Alias(place, exact("other").exact_key, entry_id, 0.95)])
    for wanted in (name, "other"):
        (found,) = (await stores.entries.find_exact(exact(wanted))).candidates
        assert found.answer.body == body
    query = nearest(near(unit(len(name)), 0.97), served_from=0.9)
    (found,) = (await stores.entries.find_nearest(query)).candidates
    assert found.answer.body == body
    answer = await stores.entries.answer(place, entry_id)
    assert answer
    assert answer.body == body
    shown = await stores.admin.entry(TENANT, entry_id)
    assert shown
    assert (shown.answer.body, shown.body_bytes) == (body, len(body))
    (listed,) = await stores.admin.entries(Listing(TENANT))
    assert listed.body_bytes == len(body)
    assert (await stores.admin.counts(TENANT))[0].body_bytes == len(body)


async def test_a_put_again_changes_the_form_together_with_the_body(stores: Stores) -> None:
    await save(stores, 3600)
    for name in ("stream", "noise", "stream", "short"):
        answer = Answer(BODIES[name], "text/event-stream")
        await stores.entries.put(new("same", answer=answer))
        await stores.entries.put(new(answer=answer, prompt_text="same", vector=unit(1)))
        (found,) = (await stores.entries.find_exact(exact("same"))).candidates
        assert found.answer.body == BODIES[name]
        query = nearest(unit(1), served_from=0.9)
        (found,) = (await stores.entries.find_nearest(query)).candidates
        assert found.answer.body == BODIES[name]


async def test_a_limit_weighs_what_is_stored(stores: Stores) -> None:
    await save(stores, 3600)
    await put(stores, "stream")
    room = Room(TENANT, POLICY, None, len(STREAM) // 2)
    assert await stores.admin.remove_overflow(room) == 0
    await put(stores, "noise")
    assert await stores.admin.remove_overflow(Room(TENANT, POLICY, None, len(NOISE))) >= 1


async def test_a_downgrade_leaves_no_frame_that_would_be_served_as_an_answer(
    stores: Stores,
) -> None:
    """The older release cannot tell one from a body."""
    await save(stores, 3600)
    for name, body in (("long", b"x" * 5000), ("short", b"x" * 500)):
        await stores.entries.put(new(name, answer=Answer(body, None)))
    await asyncio.to_thread(downgrade, stores.url, "0003")
    left = await stores.database.rows("SELECT body FROM entries")
    assert [row["body"] for row in left] == [b"x" * 500]
