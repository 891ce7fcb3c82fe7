"""Cases 38, 74 to 78, 84 and 95 for each protocol: kept whole, or not at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviours.stack import PARAPHRASE, RESET, said, stack, vector
from tests.dialects.samples import BY_NAME, SAMPLES
from tests.proxy.rig import STREAM, always
from tests.servers import answer

if TYPE_CHECKING:
    from tests.behaviours.stack import Stack
    from tests.dialects.shapes import Sample
    from tests.servers import Got, Script, Seen, Wire

STREAMING = [sample for sample in SAMPLES if sample.streams]
ALL = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.dialect.name)
STREAMED = pytest.mark.parametrize("sample", STREAMING, ids=lambda sample: sample.dialect.name)


async def call(run: Stack, sample: Sample, **fields: Any) -> Got:
    request = {name: value for name, value in sample.request.items() if name != "stream"}
    return await run.post(sample.dialect.path, {**request, **fields})


def as_asked(sample: Sample) -> Script:
    """Answers with the sample's stream or JSON, whichever is asked for."""

    async def script(seen: Seen, wire: Wire) -> None:
        if json.loads(seen.body).get("stream"):
            body = answer(sample.stream_answer, media_type=STREAM, framing="chunked")
        else:
            body = answer(sample.json_answer)
        await wire.send(body)

    return script


def sending(body: bytes, framing: str) -> Script:
    """Sends this stream to everybody; "close" ends it with the connection."""

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(body, media_type=STREAM, framing=framing))
        if framing == "close":
            wire.close()

    return script


@pytest.mark.case(95)
@pytest.mark.case(7)
@ALL
async def test_every_protocol_is_replayed_byte_for_byte(database_url: str, sample: Sample) -> None:
    async with stack(database_url, {}, as_asked(sample)) as run:
        assert said(await call(run, sample)) == "MISS"
        await run.holds(1)
        hit = await call(run, sample)
        assert (said(hit), hit.body) == ("HIT exact", sample.json_answer)
        assert len(run.upstream.seen) == 1


@pytest.mark.case(74)
@pytest.mark.case(78)
@STREAMED
@pytest.mark.parametrize("first", [True, False])
async def test_a_stream_is_replayed_as_a_stream_and_never_for_one_who_wants_json(
    database_url: str, sample: Sample, first: bool
) -> None:
    async with stack(database_url, {}, as_asked(sample)) as run:
        for stream in (first, not first):
            assert said(await call(run, sample, stream=stream)) == "MISS"
        await run.holds(2)
        streamed = await call(run, sample, stream=True)
        assert (said(streamed), streamed.body) == ("HIT exact", sample.stream_answer)
        assert (streamed["content-type"] or "").startswith("text/event-stream")
        whole = await call(run, sample, stream=False)
        assert (said(whole), whole.body) == ("HIT exact", sample.json_answer)


@pytest.mark.case(75)
@pytest.mark.case(76)
@STREAMED
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_a_stream_without_its_end_is_never_kept(
    database_url: str, sample: Sample, framing: str
) -> None:
    whole = sample.stream_answer.rstrip(b"\n")
    frames = sample.stream_answer.split(b"\n\n")
    cuts = [b"\n\n".join(frames[:-2]) + b"\n\n", whole, b"\n\n".join(frames[:1]) + b"\n\n: truncat"]
    async with stack(database_url, {}) as run:
        for cut in cuts:
            run.upstream.script = sending(cut, framing)
            before = len(run.upstream.seen)
            for _ in range(2):
                assert said(await call(run, sample, stream=True)) == "MISS"
                await run.refused(len(run.upstream.seen))
            assert len(run.upstream.seen) == before + 2
        run.upstream.script = sending(sample.stream_answer + b": bye\n\n", framing)
        assert said(await call(run, sample, stream=True)) == "MISS"
        await run.holds(1)


@pytest.mark.case(82)
@STREAMED
async def test_what_came_decides_how_it_is_replayed_and_not_what_was_asked(
    database_url: str, sample: Sample
) -> None:
    forced = always(answer(sample.stream_answer, media_type=STREAM))
    async with stack(database_url, {}, forced) as run:
        assert said(await call(run, sample)) == "MISS"
        await run.holds(1)
        hit = await call(run, sample)
        assert (said(hit), hit.body) == ("HIT exact", sample.stream_answer)
        assert (hit["content-type"] or "").startswith("text/event-stream")
        assert said(await call(run, sample, stream=True)) == "MISS"


@pytest.mark.case(84)
@pytest.mark.case(38)
@pytest.mark.case(78)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("openai-chat", lambda text: {"messages": [{"role": "user", "content": text}]}),
        ("openai-completions", lambda text: {"prompt": text}),
        ("openai-responses", lambda text: {"input": text, "store": False}),
        (
            "anthropic-messages",
            lambda text: {"max_tokens": 9, "messages": [{"role": "user", "content": text}]},
        ),
    ],
)
async def test_a_paraphrase_hits_in_every_text_protocol(
    database_url: str, name: str, request_of: Any, stream: bool
) -> None:
    sample = BY_NAME[name]
    async with stack(database_url, {}, as_asked(sample)) as run:
        run.provider.vectors |= {"How?": vector(1.0), "How so?": vector(0.97)}

        async def ask_for(text: str) -> Got:
            told = {"model": "m", "stream": stream, **request_of(text)}
            return await run.post(sample.dialect.path, told)

        assert said(await ask_for("How?")) == "MISS"
        await run.holds(1)
        other = {"model": "m", "stream": not stream, **request_of("How so?")}
        assert said(await run.post(sample.dialect.path, other)) == "MISS"
        await run.holds(2)
        hit = await ask_for("How so?")
        assert said(hit) == "HIT semantic"
        assert hit.body == (sample.stream_answer if stream else sample.json_answer)


@pytest.mark.case(95)
@pytest.mark.case(44)
async def test_what_one_anthropic_key_or_version_asked_is_not_anothers(database_url: str) -> None:
    sample = BY_NAME["anthropic-messages"]
    async with stack(database_url, {}, as_asked(sample)) as run:

        async def ask_for(key: str, version: str) -> str | None:
            told = [("x-api-key", key), ("anthropic-version", version)]
            return said(await run.post(sample.dialect.path, sample.request, key=None, headers=told))

        callers = [("a", "2023-06-01"), ("b", "2023-06-01"), ("a", "2024-01-01")]
        for number, caller in enumerate(callers, 1):
            assert await ask_for(*caller) == "MISS"
            await run.holds(number)
        for caller in callers:
            assert await ask_for(*caller) == "HIT exact"


@pytest.mark.case(95)
async def test_embeddings_are_answered_by_equality_alone(database_url: str) -> None:
    sample = BY_NAME["openai-embeddings"]
    async with stack(database_url, {}, as_asked(sample)) as run:
        run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(1.0)}

        async def embed(text: str) -> str | None:
            return said(await run.post(sample.dialect.path, {"model": "m", "input": text}))

        for number, text in enumerate((RESET, PARAPHRASE), 1):
            assert await embed(text) == "MISS"
            await run.holds(number)
            assert await embed(text) == "HIT exact"
        assert run.provider.texts == []


@pytest.mark.case(38)
@pytest.mark.parametrize(
    "fields",
    [
        {"store": None},
        {"store": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"tools": [{"type": "web_search"}]},
        {"prompt": {"id": "pmpt_1"}},
    ],
)
async def test_a_response_that_the_provider_keeps_is_left_alone(
    database_url: str, fields: dict[str, Any]
) -> None:
    body = {"model": "m", "input": "q", "store": False, **fields}
    body = {name: value for name, value in body.items() if value is not None}
    script = always(answer(BY_NAME["openai-responses"].json_answer))
    async with stack(database_url, {}, script) as run:
        for _ in range(2):
            got = await run.post("/v1/responses", body)
            assert said(got) == "BYPASS"
            assert "detail=stateful" in (got["cache-status"] or "")
        assert len(run.upstream.seen) == 2
        await run.holds(0)
