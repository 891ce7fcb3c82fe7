"""A request goes to the upstream and nowhere else, with the bytes it came with."""

from __future__ import annotations

import contextlib
import json

import pytest

from tests.proxy.rig import PATH, always, chat_body, completion, rig
from tests.servers import RawServer, answer, ask, calling, chunk

_OK = always(answer(b"{}"))
ODD = b"caf\xc3\xa9 \xe9\xff\x80"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_target_that_names_another_host_is_sent_to_nobody(method: str) -> None:
    async with RawServer(_OK) as other, rig(_OK) as proxy:
        got = await ask(proxy.url, method, f"*@127.0.0.1:{other.port}/policies/pwned", [], b"{}")
        assert got.status == 400
        assert set(json.loads(got.body)["error"]) == {"message", "type", "param", "code"}
        assert (other.seen, proxy.upstream.seen) == ([], [])


async def test_the_asterisk_form_is_sent_to_nobody() -> None:
    async with rig(_OK) as proxy:
        assert (await ask(proxy.url, "OPTIONS", "*")).status == 400
        assert proxy.upstream.seen == []


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("http://127.0.0.1:{port}/v1/models?q=1", "/v1/models?q=1"),
        ("//127.0.0.1:{port}/v1/models", "//127.0.0.1:{port}/v1/models"),
        ("/@127.0.0.1:{port}/v1/models", "/@127.0.0.1:{port}/v1/models"),
        ("/\\127.0.0.1:{port}/", "/\\127.0.0.1:{port}/"),
    ],
)
async def test_a_host_inside_the_target_is_only_a_part_of_it(target: str, sent: str) -> None:
    async with RawServer(_OK) as other, rig(_OK) as proxy:
        got = await ask(proxy.url, "GET", target.format(port=other.port))
        assert got.status == 200
        assert other.seen == []
        assert proxy.upstream.seen[0].line == f"GET {sent.format(port=other.port)} HTTP/1.1"


@pytest.mark.parametrize(
    "body", [b"", b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n"]
)
async def test_header_values_arrive_as_the_bytes_they_were_sent_as(body: bytes) -> None:
    head = b"POST /v1/threads HTTP/1.1\r\nHost: x\r\nX-Odd: " + ODD + b"\r\nX-Two: \xe9\r\n"
    rest = body + chunk(b"hello") + chunk(b"") if b"chunked" in body else body or b"\r\n"
    async with rig(_OK) as proxy, calling(proxy.url) as caller:
        for number in (1, 2):  # the second goes over the same connection
            await caller.send(head + rest)
            assert (await caller.got()).status == 200
            seen = proxy.upstream.seen[number - 1]
            assert b"\r\nX-Odd: " + ODD + b"\r\n" in seen.head.replace(b"x-odd", b"X-Odd")
            assert seen.values("x-two") == ["\xe9"]
            assert seen.body == {b"C": b"{}", b"T": b"hello", b"": b""}[body[:1]]


async def test_a_judged_request_keeps_the_bytes_of_its_headers_too() -> None:
    body = chat_body("x" * 200_000)
    async with rig(always(answer(completion()))) as proxy, calling(proxy.url) as caller:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nX-Odd: "
        await caller.send(head.encode() + ODD + b"\r\n\r\n" + body)
        assert (await caller.got())["x-ai-cache-status"] == "MISS"
        seen = proxy.upstream.seen[0]
        assert (seen.values("x-odd"), seen.body) == ([ODD.decode("latin-1")], body)


async def test_many_and_large_headers_are_the_upstreams_to_refuse() -> None:
    headers = [(f"x-{number}", "v" * 200) for number in range(250)]
    async with rig(_OK) as proxy:
        assert (await ask(proxy.url, "GET", "/v1/models", headers)).status == 200
        assert len(proxy.upstream.seen[0].headers) == 251


@pytest.mark.parametrize(
    ("status", "headers"), [(431, [("x-one", "1")] * 300), (431, [("x-long", "1" * 70_000)])]
)
async def test_what_no_server_takes_is_refused_in_the_protocols_shape(
    status: int, headers: list[tuple[str, str]]
) -> None:
    async with rig(_OK) as proxy:
        got = await ask(proxy.url, "GET", "/v1/models", headers)
        assert got.status == status
        error = json.loads(got.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


async def test_a_very_large_header_of_the_upstream_comes_back() -> None:
    async with rig(always(answer(b"{}", headers=[("x-csp", "p" * 200_000)]))) as proxy:
        got = await ask(proxy.url, "GET", "/v1/models")
        assert (got.status, got["x-csp"]) == (200, "p" * 200_000)


async def test_a_caller_of_http_1_0_gets_no_chunks_and_a_break_is_a_reset() -> None:
    whole = always(answer(b"a whole answer", framing="chunked"))
    old = b"GET /v1/models HTTP/1.0\r\n\r\n"
    async with rig(whole) as proxy:
        async with calling(proxy.url) as caller:
            await caller.send(old)
            got = await caller.got("GET")
            assert (got["transfer-encoding"], got["connection"]) == (None, "close")
            assert (got.body, got.clean) == (b"a whole answer", True)
        cut = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"half")

        async def breaking(seen: object, wire: object) -> None:
            await wire.send(cut)  # type: ignore[attr-defined]
            wire.reset()  # type: ignore[attr-defined]

        proxy.upstream.script = breaking
        async with calling(proxy.url) as caller:
            await caller.send(old)
            with contextlib.suppress(ConnectionResetError):  # it came before the head was read
                assert (await caller.got("GET")).clean is False
