"""What is not judged goes through untouched, both ways."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.policy import Policy
from tests.proxy.rig import PATH, always, chat_body, completion, rig
from tests.servers import answer, ask, calling, chunk, request

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

_OK = always(answer(b"{}"))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_method_and_target_arrive_as_they_were_sent(method: str) -> None:
    target = "/v1/files/a%2Fb%20c/../d;e=f//g?q=%7b%7D&q=a+b&&empty=&x=%C3%A9"

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(b"" if method == "HEAD" else b"{}"))

    async with rig(script) as proxy:
        got = await ask(proxy.url, method, target)
        assert got.status == 200
        assert proxy.upstream.seen[0].line == f"{method} {target} HTTP/1.1"


async def test_the_path_of_the_upstream_stands_in_front() -> None:
    async with rig(_OK) as outer:
        async with rig(_OK, upstream=f"{outer.upstream.url}/openai/") as proxy:
            await ask(proxy.url, "GET", "/v1/models")
        assert outer.upstream.seen[0].line == "GET /openai/v1/models HTTP/1.1"


async def test_no_header_is_added_and_none_but_the_connections_own_is_lost() -> None:
    sent = [
        ("x-unknown", "one"),
        ("x-unknown", "two, three"),
        ("authorization", "Bearer key"),
        ("cookie", "a=b; c=d"),
        ("accept-encoding", "gzip, br"),
        ("x-latin", "caf\xe9".encode().decode("latin-1")),
        ("cache-control", "no-cache"),
    ]
    own = [
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("proxy-authorization", "Basic eA=="),
    ]
    async with rig(_OK) as proxy:
        await ask(proxy.url, "GET", "/v1/models", [*sent, *own])
        seen = proxy.upstream.seen[0]
        host = proxy.upstream.url.removeprefix("http://")
        assert [(name.lower(), value) for name, value in seen.headers] == [("host", host), *sent]


async def test_the_answers_headers_come_back_but_for_the_connections_own() -> None:
    back = [
        ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        ("server", "someone else"),
        ("set-cookie", "a=1; Path=/"),
        ("set-cookie", "b=2"),
        ("x-ratelimit-remaining", "7"),
        ("cache-status", "upstream; hit"),
        ("vary", "accept"),
    ]
    own = [("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "timeout=5")]
    async with rig(always(answer(b"{}", headers=[*back, *own]))) as proxy:
        got = await ask(proxy.url, "GET", "/v1/models")
        expected = [("content-type", "application/json"), *back, ("content-length", "2")]
        assert got.headers == expected


@pytest.mark.parametrize(
    ("status", "framing"),
    [
        ("204 No Content", "content-length: 0\r\n"),
        ("204 No Content", ""),
        ("304 Not Modified", "content-length: 500\r\n"),
        ("304 Not Modified", ""),
    ],
)
async def test_an_answer_without_body_ends_at_once(status: str, framing: str) -> None:
    raw = f"HTTP/1.1 {status}\r\netag: x\r\n{framing}\r\n".encode()
    async with rig(always(raw)) as proxy, calling(proxy.url) as caller:
        for _ in range(2):  # the connection is still in step
            await caller.send(request("GET", "/v1/models"))
            got = await caller.got("GET")
            assert got.status == int(status[:3])
            assert got["etag"] == "x"
            assert got["transfer-encoding"] is None


async def test_head_tells_the_length_and_sends_nothing() -> None:
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"
    async with rig(always(raw)) as proxy, calling(proxy.url) as caller:
        for _ in range(2):
            await caller.send(request("HEAD", "/v1/models"))
            got = await caller.got("HEAD")
            assert got["content-length"] == "1234"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_the_callers_to_follow(status: str) -> None:
    raw = answer(b"", status=status, headers=[("location", "/elsewhere")])
    async with rig(always(raw)) as proxy:
        got = await ask(proxy.url, "GET", "/v1/models")
        assert (got.status, got["location"]) == (int(status[:3]), "/elsewhere")
        assert len(proxy.upstream.seen) == 1


async def test_a_cookie_of_one_caller_is_not_sent_for_the_next() -> None:
    async with rig(always(answer(b"{}", headers=[("set-cookie", "session=secret")]))) as proxy:
        for _ in range(2):
            await ask(proxy.url, "GET", "/v1/models")
        assert proxy.upstream.seen[1].values("cookie") == []


async def test_an_upload_streams_through_before_its_end() -> None:
    arrived = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(seen.body))

    async with rig(script) as proxy, calling(proxy.url) as caller:
        raw = asyncio.Queue[bytes]()

        async def bare(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            raw.put_nowait(await reader.readexactly(len(chunk(b"first"))))
            arrived.set()
            raw.put_nowait(await reader.readuntil(b"0\r\n\r\n"))
            writer.write(answer(b"done"))
            writer.close()

        await proxy.upstream.stop()
        server = await asyncio.start_server(bare, "127.0.0.1", proxy.upstream.port)
        head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await caller.send(head + chunk(b"first"))
        async with asyncio.timeout(10):
            await arrived.wait()
        await caller.send(chunk(b"second") + chunk(b""))
        assert (await caller.got()).body == b"done"
        assert raw.get_nowait() == chunk(b"first")
        assert raw.get_nowait() == chunk(b"second") + chunk(b"")
        server.close()
        await server.wait_closed()


async def test_an_upload_with_a_length_keeps_it_and_is_never_chunked() -> None:
    body = bytes(range(256)) * 20_000

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(b"{}"))

    async with rig(script) as proxy:
        await ask(proxy.url, "POST", "/v1/files", [("expect", "100-continue")], body)
        seen = proxy.upstream.seen[0]
        assert seen.body == body
        assert seen.values("content-length") == [str(len(body))]
        assert seen.values("transfer-encoding") == []
        assert seen.values("expect") == []


async def test_a_post_without_body_says_so() -> None:
    async with rig(_OK) as proxy:
        await ask(proxy.url, "POST", "/v1/threads", [], b"")
        assert proxy.upstream.seen[0].values("content-length") == ["0"]


async def test_pieces_come_at_the_upstreams_pace() -> None:
    """Each piece is sent on only after the caller has told the upstream that it has the last."""
    told = asyncio.Semaphore(0)
    pieces = [b"data: %d\n\n" % number for number in range(20)]

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for piece in pieces:
            await wire.send(chunk(piece))
            await told.acquire()
        await wire.send(chunk(b""))

    async with rig(script) as proxy, calling(proxy.url) as caller, asyncio.timeout(10):
        await caller.send(request("POST", PATH, [], chat_body(stream=True)))
        await caller.head()
        for piece in pieces:
            assert await caller.reader.readexactly(len(chunk(piece))) == chunk(piece)
            told.release()
        assert await caller.reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_a_request_over_the_bound_goes_through_unjudged() -> None:
    body = chat_body("x" * 5000)

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(completion()))

    async with rig(script, max_request_bytes=1024) as proxy:
        got = await proxy.post(body)
        assert got["x-ai-cache-status"] is None
        chunked = b"".join(chunk(body[at : at + 100]) for at in range(0, len(body), 100))
        async with calling(proxy.url) as caller:
            head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            await caller.send(head.encode() + chunked + chunk(b""))
            assert (await caller.got()).status == 200
        assert [seen.body for seen in proxy.upstream.seen] == [body, body]
        assert proxy.service.lookups == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions/", "/v1/models"])
async def test_other_paths_are_not_judged(path: str) -> None:
    async with rig(_OK, policy=Policy(sharing="shared")) as proxy:
        got = await ask(proxy.url, "POST", path, [], chat_body())
        assert got["x-ai-cache-status"] is None
        assert got["cache-status"] is None
        assert proxy.service.lookups == []


async def test_a_header_that_may_not_be_sent_costs_itself_and_not_the_answer() -> None:
    odd = b"HTTP/1.1 200 OK\r\nx-odd: a\x01b\r\nx-fine: 1\r\ncontent-length: 2\r\n\r\n{}"
    async with rig(always(odd)) as proxy:
        got = await ask(proxy.url, "GET", "/v1/models")
        assert (got["x-odd"], got["x-fine"], got.body) == (None, "1", b"{}")


async def test_large_answers_and_large_headers_pass() -> None:
    body = bytes(range(256)) * 40_000
    long = [(f"x-long-{number}", "v" * 4000) for number in range(10)] + [("x-csp", "p" * 30_000)]
    async with rig(always(answer(body, headers=long, framing="chunked"))) as proxy:
        got = await ask(proxy.url, "GET", "/v1/files/1/content")
        assert got.body == body
        assert got["x-csp"] == "p" * 30_000
