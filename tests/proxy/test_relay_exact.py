"""The small things that a relay loses when nobody looks."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import resource
import time
from typing import TYPE_CHECKING

import pytest

from tests.proxy.rig import PATH, always, chat_body, rig
from tests.servers import answer, ask, calling, chunk, request

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

_OK = always(answer(b"{}"))
MIB = 2**20


@pytest.mark.parametrize("target", ["/v1/models?", "/v1/a?b?c?", "/v1/models??", "/?", "/v1/x?a=1"])
async def test_a_question_mark_at_the_end_stays(target: str) -> None:
    async with rig(_OK) as proxy, calling(proxy.url) as caller:
        for _ in range(2):  # the second over the same connection
            await caller.send(request("GET", target, [("x-latin", "\xe9")]))
            assert (await caller.got("GET")).status == 200
        assert [seen.line for seen in proxy.upstream.seen] == [f"GET {target} HTTP/1.1"] * 2


async def test_a_bare_question_mark_keeps_the_body() -> None:
    body = bytes(range(256)) * 8000
    async with rig(_OK) as proxy:
        await ask(proxy.url, "POST", "/v1/files?", [], body)
        seen = proxy.upstream.seen[0]
        assert (seen.line, seen.body) == ("POST /v1/files? HTTP/1.1", body)


async def test_a_very_long_target_arrives() -> None:
    target = "/v1/files?after=" + "x" * 50_000
    async with rig(_OK) as proxy:
        assert (await ask(proxy.url, "GET", target)).status == 200
        assert proxy.upstream.seen[0].line == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_304_tells_the_length_it_would_have(method: str) -> None:
    raw = b"HTTP/1.1 304 Not Modified\r\netag: x\r\ncontent-length: 500\r\n\r\n"
    async with rig(always(raw)) as proxy, calling(proxy.url) as caller:
        for _ in range(3):
            await caller.send(request(method, "/v1/models", [("if-none-match", "x")]))
            got = await caller.got(method)
            assert (got.status, got["content-length"], got["etag"]) == (304, "500", "x")


async def test_hints_before_the_answer_are_dropped_quietly() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    async with rig(always(hints + answer(b"{}"))) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/models"))
        assert (await caller.head()).startswith(b"HTTP/1.1 200 ")


async def test_expect_is_answered_and_the_body_then_arrives() -> None:
    async with rig(_OK) as proxy, calling(proxy.url) as caller:
        head = request("POST", "/v1/files", [("expect", "100-continue"), ("content-length", "5")])
        await caller.send(head)
        assert await caller.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.send(b"hello")
        assert (await caller.got()).status == 200
        assert proxy.upstream.seen[0].body == b"hello"


async def test_equal_headers_keep_their_number_and_order() -> None:
    many = [("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-a", "1"), ("x-b", "")]
    cookies = [
        ("set-cookie", f"c{n}=a, b; Expires=Wed, 09 Jun 2027 10:18:14 GMT") for n in range(5)
    ]
    async with rig(always(answer(b"{}", headers=[*cookies, *many]))) as proxy:
        got = await ask(proxy.url, "GET", "/v1/models", many)
        names = {"x-a", "x-b", "set-cookie"}
        assert [pair for pair in proxy.upstream.seen[0].headers if pair[0] in names] == many
        assert [pair for pair in got.headers if pair[0] in names] == [*cookies, *many]


@pytest.mark.parametrize("framing", ["content-length: 2\r\n\r\n{}", "connection: close\r\n\r\n{}"])
async def test_an_answer_without_a_type_gets_none(framing: str) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n" + framing.encode())
        wire.close()

    async with rig(script) as proxy:
        got = await ask(proxy.url, "GET", "/v1/files/1/content")
        assert (got["content-type"], got.body, got.clean) == (None, b"{}", True)


async def test_an_empty_chunked_body_stays_one_both_ways() -> None:
    empty = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    async with rig(always(empty)) as proxy, calling(proxy.url) as caller:
        await caller.send(request("POST", "/v1/x", [("transfer-encoding", "chunked")]) + chunk(b""))
        got = await caller.got()
        assert (got.status, got.body, got["transfer-encoding"]) == (200, b"", "chunked")
        seen = proxy.upstream.seen[0]
        assert (seen.body, seen.values("transfer-encoding")) == (b"", ["chunked"])


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "GET"])
async def test_a_body_arrives_whatever_the_method(method: str) -> None:
    body = bytes(range(256))
    async with rig(always(answer(body, media_type="application/octet-stream"))) as proxy:
        got = await ask(proxy.url, method, "/v1/things/1", [], body)
        assert (proxy.upstream.seen[0].body, got.body) == (body, body)


async def test_binary_event_streams_pass_both_ways() -> None:
    media_type = "application/vnd.amazon.eventstream"
    frame = b"\x00\x00\x00\x20\x00\x00\x00\x00" + bytes(range(256)) * 40
    async with rig(always(answer(frame, media_type=media_type, framing="chunked"))) as proxy:
        got = await ask(proxy.url, "POST", "/model/m/invoke", [("content-type", media_type)], frame)
        assert (got.body, got["content-type"]) == (frame, media_type)
        assert proxy.upstream.seen[0].body == frame


async def test_a_packed_request_is_not_read_and_arrives_packed() -> None:
    packed = gzip.compress(chat_body())
    async with rig(_OK) as proxy:
        got = await proxy.post(packed, [("content-encoding", "gzip")])
        assert (got.status, got["x-ai-cache-status"]) == (200, None)
        seen = proxy.upstream.seen[0]
        assert (seen.body, seen.values("content-encoding")) == (packed, ["gzip"])
        assert proxy.service.lookups == []


async def test_a_caller_of_http_1_0_may_send_a_body_and_keeps_a_length() -> None:
    async with rig(always(answer(b"a whole answer"))) as proxy, calling(proxy.url) as caller:
        await caller.send(b"POST /v1/threads HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}")
        got = await caller.got()
        assert (got.body, got["content-length"]) == (b"a whole answer", "14")
        assert (proxy.upstream.seen[0].line, proxy.upstream.seen[0].body) == (
            "POST /v1/threads HTTP/1.1",
            b"{}",
        )


async def test_a_large_multipart_upload_streams_in_bounded_memory() -> None:
    size = 50 * MIB
    digests: list[str] = []

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"multipart/form-data; boundary=xx" in head
        digest, left = hashlib.sha256(), size
        while left:
            data = await reader.read(min(left, 65536))
            digest.update(data)
            left -= len(data)
        digests.append(digest.hexdigest())
        writer.write(answer(b"{}"))
        writer.close()

    server = await asyncio.start_server(sink, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    piece = bytes(range(256)) * 256
    sent = hashlib.sha256()
    headers = [("content-type", "multipart/form-data; boundary=xx"), ("content-length", str(size))]
    async with rig(upstream=f"http://127.0.0.1:{port}") as proxy, calling(proxy.url) as caller:
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        await caller.send(request("POST", "/v1/files", headers))
        for _ in range(size // len(piece)):
            sent.update(piece)
            await caller.send(piece)
        assert (await caller.got()).status == 200
        assert digests == [sent.hexdigest()]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # KiB
        assert time.monotonic() - began < 20
    server.close()
    await server.wait_closed()


async def test_a_packet_of_requests_keeps_its_order() -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(seen.line.encode()))

    async with rig(script) as proxy, calling(proxy.url) as caller:
        await caller.send(b"".join(request("GET", f"/{n}") for n in range(5)))
        for n in range(5):
            assert (await caller.got("GET")).body == f"GET /{n} HTTP/1.1".encode()


async def test_the_cached_path_with_a_bare_question_mark_is_relayed_with_it() -> None:
    async with rig() as proxy:
        assert (await ask(proxy.url, "POST", f"{PATH}?", proxy.headers, chat_body())).status == 200
        assert proxy.upstream.seen[0].line == f"POST {PATH}? HTTP/1.1"
