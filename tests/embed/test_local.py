"""The local model: its vectors, its one thread, and an event loop that it never holds up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from cachesvc.embed import manifest
from cachesvc.embed.local import MAX_WAITING, LocalEmbedder
from cachesvc.errors import EmbedError, StartError

if TYPE_CHECKING:
    from collections.abc import Awaitable

SHORT = "How do I reset my password?"
LONG = "please summarise this report for me " * 30  # 212 tokens
# A first question, one that says the same, one about something else.
SANE = [
    (SHORT, "How can I reset my password?", "How do I delete my account?"),
    ("Where is my order?", "Where's my order?", "How do I cancel my order?"),
    ("What is the capital of France?", "What's France's capital city?", "What do bees eat?"),
    ("How long does shipping take?", "How long will delivery take?", "Do you ship to Norway?"),
]


def cosine(a: bytes | None, b: bytes | None) -> float:
    assert a is not None
    assert b is not None
    return float(np.frombuffer(a, "<f4") @ np.frombuffer(b, "<f4"))


async def test_a_vector_is_384_little_endian_floats_of_unit_length(local: LocalEmbedder) -> None:
    vector = await local.embed(SHORT)
    assert vector is not None
    assert len(vector) == 4 * 384
    assert np.linalg.norm(np.frombuffer(vector, "<f4").astype(float)) == pytest.approx(1, abs=1e-6)


async def test_the_space_names_provider_model_variant_and_dimensions(local: LocalEmbedder) -> None:
    assert local.space == "local:all-MiniLM-L6-v2:int8-matmul-per-channel:384"
    assert local.provider == "local"


async def test_the_same_text_gives_the_same_bytes(local: LocalEmbedder, built: Path) -> None:
    first = await local.embed(SHORT)
    assert await local.embed(SHORT) == first
    another = LocalEmbedder(built)
    assert await another.embed(SHORT) == first
    await another.close()


async def test_what_is_in_flight_beside_a_text_does_not_change_its_vector(
    local: LocalEmbedder,
) -> None:
    alone = await local.embed(SHORT)
    crowd = await asyncio.gather(*(local.embed(text) for text in (LONG, SHORT, "hi", SHORT, LONG)))
    assert None not in crowd
    assert crowd[1] == crowd[3] == alone


@pytest.mark.parametrize(("asked", "same", "other"), SANE)
async def test_the_same_question_is_nearer_than_another_one(
    local: LocalEmbedder, asked: str, same: str, other: str
) -> None:
    vector = await local.embed(asked)
    assert cosine(vector, await local.embed(same)) > cosine(vector, await local.embed(other)) + 0.05


@pytest.mark.parametrize("text", ["", " \n\t "])
async def test_nothing_to_embed_is_no_failure(local: LocalEmbedder, text: str) -> None:
    assert cosine(await local.embed(text), await local.embed(text)) == pytest.approx(1)


async def test_257_tokens_have_no_vector(local: LocalEmbedder) -> None:
    assert await local.embed("hello " * 254) is not None
    assert await local.embed("hello " * 255) is None


async def test_a_very_long_text_is_refused_without_a_turn_in_the_queue(built: Path) -> None:
    full = LocalEmbedder(built, max_waiting=0)
    assert await full.embed("hello " * 10_000) is None
    with pytest.raises(EmbedError):
        await full.embed(SHORT)
    await full.close()


async def test_one_text_too_many_is_refused_at_once(built: Path) -> None:
    embedder = LocalEmbedder(built)
    asked = [embedder.embed(LONG) for _ in range(MAX_WAITING + 2)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, EmbedError)]
    assert [str(end) for end in refused] == ["too many texts are waiting (64)"] * 2
    assert sum(isinstance(end, bytes) for end in ends) == MAX_WAITING
    assert await embedder.embed(SHORT) is not None
    await embedder.close()


async def test_callers_who_leave_cost_nothing_more_and_break_nothing(local: LocalEmbedder) -> None:
    expected = await local.embed(SHORT)
    one_long = await _seconds(local.embed(LONG))
    leaving = [asyncio.create_task(local.embed(LONG)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    assert all(task.cancelled() for task in leaving)
    started = time.monotonic()
    assert await local.embed(SHORT) == expected
    # Of 64 that waited, one was being embedded.
    assert time.monotonic() - started < MAX_WAITING / 2 * one_long


@pytest.mark.parametrize(
    "text", [LONG, "how do i reset it " * 455], ids=["embedded", "only tokenised"]
)
async def test_the_event_loop_turns_while_texts_are_embedded(
    local: LocalEmbedder, text: str
) -> None:
    texts = 50
    gaps: list[float] = []

    async def turn() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    turning = asyncio.create_task(turn())
    took = await _seconds(asyncio.gather(*(local.embed(text) for _ in range(texts))))
    turning.cancel()
    # On the loop's own thread, or under the interpreter's lock, it would turn once per text.
    assert len(gaps) > 10 * texts
    assert max(gaps) < took / 4


async def _seconds(work: Awaitable[object]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


async def test_closing_fails_who_waits_and_who_comes_later(built: Path) -> None:
    embedder = LocalEmbedder(built)
    waiting = [asyncio.create_task(embedder.embed(LONG)) for _ in range(20)]
    await asyncio.sleep(0)
    await embedder.close()
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert {str(end) for end in ends if not isinstance(end, bytes)} == {"the embedder is closed"}
    with pytest.raises(EmbedError, match="closed"):
        await embedder.embed(SHORT)


async def test_warming_up_ends_well_on_this_machine(local: LocalEmbedder) -> None:
    await local.warm()


async def test_warming_up_fails_where_vectors_are_not_the_models(
    built: Path, tmp_path: Path
) -> None:
    for name in (manifest.MODEL, manifest.TOKENIZER):
        (tmp_path / name).symlink_to(built / name)
    about = manifest.read(built)
    assert about is not None
    manifest.write(tmp_path, msgspec.structs.replace(about, probe_text="Something else entirely."))
    embedder = LocalEmbedder(tmp_path)
    with pytest.raises(EmbedError, match=r"computes the local model wrongly: cosine -?0\.\d+"):
        await embedder.warm()
    await embedder.close()


def test_a_folder_without_a_model_is_a_start_error(tmp_path: Path, built: Path) -> None:
    with pytest.raises(StartError, match="holds no built embedding model"):
        LocalEmbedder(tmp_path)
    about = manifest.read(built)
    assert about is not None
    manifest.write(tmp_path, about)
    (tmp_path / manifest.TOKENIZER).symlink_to(built / manifest.TOKENIZER)
    (tmp_path / manifest.MODEL).write_bytes(b"no model")
    with pytest.raises(StartError, match="cannot be loaded"):
        LocalEmbedder(tmp_path)


def test_the_runtime_leaves_nothing_for_its_maker(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/usr/bin"}
    loaded = "import cachesvc.embed.session, cachesvc.embed.graph"
    subprocess.run([sys.executable, "-c", loaded], env=home, check=True, cwd=Path.cwd())
    assert list(tmp_path.rglob("*")) == []
