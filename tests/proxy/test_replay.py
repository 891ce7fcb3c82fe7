"""A hit is the stored body, byte for byte, and nothing else of the first answer."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import TYPE_CHECKING, Any

import brotli
import msgspec
import pytest
import zstandard

from cachesvc import wire as contract
from cachesvc.core.policy import Policy
from tests.proxy.rig import STREAM, always, completion, events, rig
from tests.servers import answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Seen, Wire

_SECRETS = [
    ("set-cookie", "session=secret"),
    ("x-request-id", "req-1"),
    ("x-ratelimit-remaining", "7"),
    ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
    ("etag", "x"),
    ("server", "someone"),
]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(
    ("body", "media_type", "stream"),
    [
        pytest.param(completion("ü\x7f\u2028"), "application/json", False, id="json"),
        pytest.param(
            b'{"choices":[{"finish_reason":"stop","x":"\\ud800\\u0000","x":1e5}] }\r\n',
            "application/json; charset=utf-8",
            False,
            id="odd json",
        ),
        pytest.param(events("Hi", "é\r"), STREAM, True, id="stream"),
        pytest.param(
            b": a comment\r\n\r\n" + events("Hi").replace(b"\n", b"\r\n") + b": bye\n\n",
            "text/event-stream;charset=UTF-8",
            True,
            id="odd stream",
        ),
    ],
)
async def test_what_came_is_what_is_replayed(
    body: bytes, media_type: str, stream: bool, framing: str
) -> None:
    raw = answer(body, media_type=media_type, headers=_SECRETS, framing=framing)

    async def script(seen: Seen, connection: Wire) -> None:
        await connection.send(raw)
        if framing == "close":
            connection.close()

    async with rig(script) as proxy:
        first = await proxy.chat(stream=stream)
        assert (first.status, first.body, first.clean) == (200, body, True)
        assert first["set-cookie"] == "session=secret"
        await proxy.kept(1)
        hit = await proxy.chat(stream=stream)
        assert hit.body == body
        assert hit.clean
        names = sorted(name for name, _ in hit.headers)
        assert names == [
            *("age", "cache-status", "content-length", "content-type", "date"),
            *("x-ai-cache-age", "x-ai-cache-entry-id", "x-ai-cache-status", "x-ai-cache-tier"),
        ]
        assert hit["content-type"] == media_type
        assert hit["content-length"] == str(len(body))
        assert hit["x-ai-cache-status"] == "HIT"
        assert len(proxy.upstream.seen) == 1


def _zstd_in_pieces(body: bytes) -> bytes:
    return b"".join(zstandard.compress(body[at : at + 50]) for at in range(0, len(body), 50))


CODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip in members": ("GZip", lambda b: gzip.compress(b[:9]) + gzip.compress(b[9:])),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", lambda b: zlib.compress(b, wbits=-15)),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.compress),
    "zstd in frames": ("zstd", _zstd_in_pieces),
    "identity": ("identity", lambda b: b),
}


@pytest.mark.parametrize("name", list(CODERS))
async def test_a_coded_answer_passes_as_it_is_and_is_replayed_decoded(name: str) -> None:
    coding, coder = CODERS[name]
    body = events("Hi", "there")
    coded = coder(body)
    headers = [("content-encoding", coding)]
    raw = answer(coded, media_type=STREAM, headers=headers, framing="chunked")
    async with rig(always(raw)) as proxy:
        first = await proxy.chat(stream=True)
        assert first.body == coded
        assert first["content-encoding"] == coding
        await proxy.kept(1)
        hit = await proxy.chat(stream=True)
        assert hit.body == body
        assert hit["content-encoding"] is None


async def test_a_put_carries_what_the_answer_said_about_itself() -> None:
    raw = answer(completion("Hi"))
    async with rig(always(raw), embed=True) as proxy:
        await proxy.chat("a question", model="gpt-x")
        await proxy.kept(1)
        put = proxy.service.puts[0]
        assert (put.prompt_tokens, put.completion_tokens) == (7, 9)
        assert (put.model, put.prompt_text) == ("gpt-x", "a question")
        assert put.body == completion("Hi")
        assert put.generation == 1
        assert put.ttl_seconds is None
        assert put.upstream_ms is not None
        assert put.upstream_ms > 0
        assert put.scope == proxy.service.lookups[0].scope
        nearest = proxy.service.lookups[1]
        assert (put.exact_key, put.partition) == (nearest.exact_key, nearest.partition)
        assert (put.embedding, put.space) == (nearest.embedding, nearest.space)


async def test_the_put_starts_after_the_callers_last_byte() -> None:
    """The service is asked to keep nothing while the answer still flows."""
    go, sent = asyncio.Event(), asyncio.Event()
    whole = answer(events("Hi"), media_type=STREAM, framing="chunked")

    async def script(seen: Seen, connection: Wire) -> None:
        await connection.send(whole[:-5])
        sent.set()
        await go.wait()
        await connection.send(whole[-5:])

    async with rig(script) as proxy:
        call = asyncio.create_task(proxy.chat(stream=True))
        await sent.wait()
        assert proxy.service.puts == []
        go.set()
        assert (await call).clean
        await proxy.kept(1)


async def test_a_large_answer_is_kept_and_replayed() -> None:
    body = completion("x" * 3_000_000)
    policy = Policy(max_body_bytes=4_000_000)
    async with rig(always(answer(body, framing="chunked")), policy=policy) as proxy:
        await proxy.chat()
        await proxy.kept(1)
        assert (await proxy.chat()).body == body


async def test_an_entry_put_as_json_text_is_replayed_as_json() -> None:
    text = b'{"id": "put by  hand"}'
    async with rig() as proxy:
        proxy.service.reply = contract.LookupReply(
            hit=True,
            tier="exact",
            reason="alias",
            response=msgspec.Raw(msgspec.msgpack.encode(text)),
        )
        hit = await proxy.chat()
        assert (hit.body, hit["content-type"]) == (text, "application/json")
        assert hit["cache-status"] == "cachesvc; hit; detail=alias"
        assert hit["age"] == "0"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"media_type": "text/plain\r\nset-cookie: a=b"}, id="a line in the type"),
        pytest.param({"media_type": ""}, id="no type"),
        pytest.param({"tier": "third"}, id="a tier that is none"),
        pytest.param({"tier": None}, id="no tier"),
    ],
)
async def test_a_hit_that_cannot_be_sent_is_a_miss(wrong: dict[str, Any]) -> None:
    hit = {"hit": True, "tier": "exact", "reason": "exact", "body": b"{}", "media_type": "a/b"}
    async with rig() as proxy:
        proxy.service.reply = contract.LookupReply(**{**hit, **wrong})
        got = await proxy.chat()
        assert (got.status, got["x-ai-cache-status"]) == (200, "MISS")
        assert (got["cache-status"] or "").endswith("detail=cache_unavailable")


async def test_an_entry_id_that_cannot_be_sent_is_left_out() -> None:
    async with rig() as proxy:
        proxy.service.reply = contract.LookupReply(
            hit=True,
            tier="exact",
            reason="exact",
            body=b"{}",
            media_type="a/b",
            entry_id="x\r\nset-cookie: a=b",
            expires_at="never",
        )
        got = await proxy.chat()
        assert (got["x-ai-cache-status"], got["x-ai-cache-entry-id"]) == ("HIT", None)
        assert got["set-cookie"] is None
        assert got["cache-status"] == "cachesvc; hit; detail=exact"


async def test_a_stream_and_a_plain_answer_never_stand_in_for_each_other() -> None:
    async def script(seen: Seen, connection: Wire) -> None:
        if b'"stream": true' in seen.body:
            await connection.send(answer(events("Hi"), media_type=STREAM))
        else:
            await connection.send(answer(completion("Hi")))

    async with rig(script, embed=True) as proxy:
        for number, stream in enumerate((True, False), 1):
            got = await proxy.chat(stream=stream)
            assert got["x-ai-cache-status"] == "MISS"
            await proxy.kept(number)
        assert (await proxy.chat(stream=True))["content-type"] == STREAM
        assert (await proxy.chat(stream=False))["content-type"] == "application/json"
        assert (await proxy.chat())["x-ai-cache-status"] == "HIT"
        assert len(proxy.upstream.seen) == 2


async def test_a_server_that_always_streams_is_replayed_as_it_came() -> None:
    """The key carries what was asked, the entry what came."""
    async with rig(always(answer(events("Hi"), media_type=STREAM))) as proxy:
        await proxy.chat()
        await proxy.kept(1)
        hit = await proxy.chat()
        assert (hit.body, hit["content-type"]) == (events("Hi"), STREAM)
