"""The cache inside a client: the same answers as through the proxy, and never in the way."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import msgspec
import openai
import pytest

from cachesvc import CachingTransport
from cachesvc.core.policy import Policy
from cachesvc.errors import ConfigError
from cachesvc.settings import Embed, Settings
from tests.inprocess.rig import Inside, inside
from tests.proxy.rig import SECRET, STREAM, always, chat_body, completion, events, eventually
from tests.proxy.rig import started as proxy_started
from tests.servers import answer, ask, chunk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.servers import Seen, Wire

PACKAGES = [pytest.param(httpx, id="httpx"), pytest.param(httpx2, id="httpx2")]
COLOURS = ["sync", "async"]
HEADERS = {"authorization": "Bearer key-1", "content-type": "application/json"}


async def post(
    package: Any, colour: str, transport: CachingTransport, url: str, body: bytes, **headers: str
) -> Any:
    """One whole call with a client of the package."""
    told = {**HEADERS, **headers}
    if colour == "async":
        client = package.AsyncClient(transport=transport)
        return await client.post(url, content=body, headers=told)
    client = package.Client(transport=transport)
    return await asyncio.to_thread(client.post, url, content=body, headers=told)


async def kept(rig: Inside, count: int) -> None:
    await eventually(lambda: len(rig.service.puts) >= count)
    assert len(rig.service.puts) == count


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("package", PACKAGES)
async def test_a_miss_is_kept_and_a_hit_is_its_bytes(
    tmp_path: Path, package: Any, colour: str, stream: bool
) -> None:
    body, kind = (events("a", "é"), STREAM) if stream else (completion(), "application/json")
    cookie = [("set-cookie", "a=b"), ("x-request-id", "r")]
    script = always(answer(body, media_type=kind, headers=cookie, framing="chunked"))
    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        asked = chat_body(stream=stream)
        miss = await post(package, colour, transport, rig.url, asked)
        assert isinstance(miss, package.Response)
        assert (miss.headers["x-ai-cache-status"], miss.content) == ("MISS", body)
        assert miss.headers["set-cookie"] == "a=b"
        await kept(rig, 1)
        hit = await post(package, colour, transport, rig.url, asked)
        assert (hit.status_code, hit.content) == (200, body)
        assert hit.headers["x-ai-cache-status"] == "HIT"
        assert hit.headers["cache-status"].startswith("cachesvc; hit")
        assert hit.headers["content-type"] == kind
        assert "set-cookie" not in hit.headers
        assert "x-request-id" not in hit.headers
        assert len(rig.upstream.seen) == 1


async def test_answers_are_shared_with_a_proxy_in_front_of_the_same_upstream(
    tmp_path: Path,
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        first = await post(httpx2, "sync", transport, rig.url, chat_body())
        await kept(rig, 1)
        settings = Settings(
            proxy=msgspec.structs.replace(transport._settings.proxy, listen="127.0.0.1:0"),
            embed=Embed(provider="none"),
        )
        async with proxy_started(settings) as proxy:
            headers = [("authorization", "Bearer key-1")]
            got = await ask(proxy, "POST", "/v1/chat/completions", headers, chat_body())
        assert (got["x-ai-cache-status"], got.body) == ("HIT", first.content)


async def test_a_prefix_of_the_path_is_part_of_the_upstreams_name(tmp_path: Path) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        for prefix in ("", "/api", "/other"):
            url = f"{rig.upstream.url}{prefix}/v1/chat/completions"
            got = await post(httpx, "sync", transport, url, chat_body())
            assert got.headers["x-ai-cache-status"] == "MISS"
        await kept(rig, 3)
        assert len({put.exact_key for put in rig.service.puts}) == 3
        lines = [seen.line for seen in rig.upstream.seen]
        assert lines[1] == "POST /api/v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize("colour", COLOURS)
async def test_the_openai_sdk_needs_nothing_but_the_client(tmp_path: Path, colour: str) -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        if b'"stream":true' in seen.body.replace(b" ", b""):
            await wire.send(answer(events("Hi", "!"), media_type=STREAM, framing="chunked"))
        else:
            await wire.send(answer(completion("Hi")))

    messages: Any = [{"role": "user", "content": "Hello"}]
    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        common: Any = {"base_url": f"{rig.upstream.url}/v1", "api_key": "key-1"}
        tell: Callable[[], Awaitable[list[Any]]]

        def told() -> list[Any]:
            client = openai.OpenAI(http_client=httpx2.Client(transport=transport), **common)
            whole = client.chat.completions.create(model="m", messages=messages)
            chunks = client.chat.completions.create(model="m", messages=messages, stream=True)
            return [whole.to_json(), *(one.to_json() for one in chunks)]

        async def told_async() -> list[Any]:
            http = httpx2.AsyncClient(transport=transport)
            client = openai.AsyncOpenAI(http_client=http, **common)
            whole = await client.chat.completions.create(model="m", messages=messages)
            chunks = await client.chat.completions.create(model="m", messages=messages, stream=True)
            return [whole.to_json(), *[one.to_json() async for one in chunks]]

        tell = told_async if colour == "async" else partial(asyncio.to_thread, told)
        first = await tell()
        await kept(rig, 2)
        assert await tell() == first
        assert len(first) == 3
        assert len(rig.upstream.seen) == 2


@pytest.mark.parametrize("fault", ["hang", "500", "garbage", "close"])
@pytest.mark.parametrize("colour", COLOURS)
async def test_a_cache_that_fails_costs_a_miss(tmp_path: Path, colour: str, fault: str) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make, **{"proxy.lookup_budget_ms": 100})
        rig.service.fault, rig.service.faulty = fault, ("/cache/lookup", "/cache/put")
        async with asyncio.timeout(5):
            got = await post(httpx, colour, transport, rig.url, chat_body())
        assert (got.status_code, got.headers["x-ai-cache-status"]) == (200, "MISS")


async def test_a_closed_transport_and_one_without_a_service_pass_everything_on(
    tmp_path: Path,
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make, httpx.HTTPTransport())
        transport._closing()
        got = await post(httpx, "sync", transport, rig.url, chat_body())
        assert (got.status_code, "x-ai-cache-status" in got.headers) == (200, False)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("package", PACKAGES)
async def test_a_broken_answer_raises_what_the_client_would_and_is_not_kept(
    tmp_path: Path, package: Any, colour: str
) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(head + chunk(events("a")))
        wire.close()

    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        with pytest.raises(package.RemoteProtocolError):
            await post(package, colour, transport, rig.url, chat_body(stream=True))
        rig.upstream.script = always(answer(b"", status="500 X"))
        assert (await post(package, colour, transport, rig.url, chat_body())).status_code == 500
        with pytest.raises(package.ConnectError):
            await post(package, colour, transport, "http://127.0.0.1:1/v1/messages", chat_body())
        await asyncio.to_thread(transport.close)  # waits for what would be put
        assert rig.service.puts == []


@pytest.mark.parametrize("whole", [True, False])
async def test_a_stream_closed_early_is_kept_only_if_it_had_said_its_end(
    tmp_path: Path, whole: bool
) -> None:
    stay = asyncio.Event()
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(head + chunk(events("a", end="data: [DONE]\n\n" if whole else "")))
        await stay.wait()

    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        client = httpx.AsyncClient(transport=transport, headers=HEADERS)
        async with client.stream("POST", rig.url, content=chat_body(stream=True)) as response:
            pieces = response.aiter_raw()
            await anext(pieces)
        stay.set()
        await transport.aclose()
        assert len(rig.service.puts) == whole


async def test_what_is_none_of_its_own_goes_on_as_it_is(tmp_path: Path) -> None:
    async with inside(tmp_path, always(answer(completion()))) as rig:
        transport = await asyncio.to_thread(rig.make)
        client = httpx.AsyncClient(transport=transport, headers=HEADERS)

        async def streamed() -> Any:
            yield chat_body()

        replies = [
            await client.get(f"{rig.upstream.url}/v1/models"),
            await client.post(f"{rig.upstream.url}/v1/audio", content=b"x"),
            await client.post(rig.url, content=streamed()),
            await client.post(rig.url, content=b"not json"),
        ]
        assert [reply.status_code for reply in replies] == [200] * 4
        assert not any("x-ai-cache-status" in reply.headers for reply in replies)
        assert rig.service.lookups == []
        assert rig.upstream.seen[2].body == chat_body()


async def test_several_threads_may_share_one(tmp_path: Path) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        client = httpx.Client(transport=transport, headers=HEADERS)

        def call(number: int) -> bytes:
            return bytes(client.post(rig.url, content=chat_body(f"q {number % 8}")).content)

        await asyncio.gather(*(asyncio.to_thread(call, number) for number in range(8)))
        await kept(rig, 8)
        again = [await asyncio.to_thread(call, number) for number in range(16)]
        assert again[:8] == again[8:]
        assert len(set(again)) == 8
        assert len(rig.upstream.seen) == 8


async def test_a_policy_may_pace_the_replay(tmp_path: Path) -> None:
    whole = events("a", "b")
    script = always(answer(whole, media_type=STREAM))
    async with inside(tmp_path, script, policy=Policy(replay="paced")) as rig:
        transport = await asyncio.to_thread(rig.make)
        for colour in COLOURS:
            got = await post(httpx, colour, transport, rig.url, chat_body(stream=True))
            assert got.content == whole


async def test_closing_ends_its_thread(tmp_path: Path) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        assert [t.name for t in threading.enumerate()].count("cachesvc") == 1
        await transport.aclose()
        assert "cachesvc" not in [t.name for t in threading.enumerate()]


def test_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"proxy\.scope_secret"):
        CachingTransport(settings={"data_dir": str(tmp_path), "embed.provider": "none"})
    with pytest.raises(ConfigError, match="upstraem"):
        CachingTransport(scope_secret=SECRET, settings={"proxy.upstraem": "x"})


def test_a_program_that_forgets_to_close_still_ends(tmp_path: Path) -> None:
    code = (
        "import cachesvc, httpx\n"
        f"t = cachesvc.CachingTransport(scope_secret={SECRET!r}, service_url='http://127.0.0.1:1',"
        f" settings={{'data_dir': {str(tmp_path)!r}, 'embed.provider': 'none'}})\n"
        "c = httpx.Client(transport=t)\n"
        "try:\n    c.post('http://127.0.0.1:1/v1/messages', content=b'{}')\n"
        "except httpx.ConnectError:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "refused\n"
