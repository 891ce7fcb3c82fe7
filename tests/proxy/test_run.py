"""Starting, being ready, and stopping without a trace."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cachesvc.errors import ConfigError, StartError
from cachesvc.proxy.run import serve
from cachesvc.settings import Embed, Proxy, ProxyTLS, Settings
from tests.proxy.rig import PATH, SECRET, STREAM, chat_body, events, rig
from tests.servers import answer, ask, calling, chunk, request

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

NONE = Embed(provider="none")


async def test_without_a_scope_secret_it_does_not_start_and_says_why() -> None:
    with pytest.raises(ConfigError, match=r"^proxy\.scope_secret: is required"):
        await serve(Settings(embed=NONE))


async def test_a_taken_address_is_one_line() -> None:
    async with rig() as proxy:
        taken = proxy.url.removeprefix("http://")
        listening = Proxy(listen=taken, scope_secret=SECRET, service_url=proxy.service.server.url)
        with pytest.raises(StartError, match=r"^proxy\.listen: cannot listen on"):
            await serve(Settings(proxy=listening, embed=NONE), stop=asyncio.Event())


async def test_certificates_that_are_none_stop_the_start(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    tls = ProxyTLS(cert_file=str(empty), key_file=str(empty), ca_file=str(empty))
    with pytest.raises(ConfigError, match=r"^proxy\.tls: "):
        await serve(
            Settings(proxy=Proxy(scope_secret=SECRET, tls=tls), embed=NONE), stop=asyncio.Event()
        )


async def test_it_accepts_only_when_policies_and_embedder_are_there() -> None:
    async with rig(embed=True) as proxy:
        ready = await ask(proxy.url, "GET", "/readyz")
        assert (ready.status, ready.body) == (200, b"ok\n")
        assert (await proxy.chat())["x-ai-cache-status"] == "MISS"
        warmed = [seen for seen in proxy.provider.server.seen if b'"warm"' in seen.body]
        assert len(warmed) == 1


async def test_its_own_pages_are_not_the_upstreams() -> None:
    async with rig() as proxy:
        for page in ("/livez", "/readyz", "/metrics"):
            assert (await ask(proxy.url, "GET", page)).status == 200
        assert proxy.upstream.seen == []
        await ask(proxy.url, "POST", "/metrics", [], b"x")
        assert len(proxy.upstream.seen) == 1


async def test_a_stop_lets_a_stream_end_and_its_answer_be_kept() -> None:
    sent, go = asyncio.Event(), asyncio.Event()
    whole = answer(events("Hi"), media_type=STREAM, framing="chunked")

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(whole[:-5])
        sent.set()
        await go.wait()
        await wire.send(whole[-5:])

    context = rig(script)
    proxy = await context.__aenter__()
    async with calling(proxy.url) as caller:
        await caller.send(request("POST", PATH, proxy.headers, chat_body(stream=True)))
        await sent.wait()
        asyncio.get_running_loop().call_later(0.2, go.set)
        leaving = asyncio.create_task(context.__aexit__(None, None, None))
        got = await caller.got()
        assert (got.clean, got.body) == (True, events("Hi"))
        await leaving
    assert len(proxy.service.puts) == 1


async def test_a_stop_is_bounded_whatever_hangs(caplog: pytest.LogCaptureFixture) -> None:
    async def endless(seen: Seen, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + chunk(b"data: 1\n\n")
        )
        await wire.gone()

    loop = asyncio.get_running_loop()
    reported: list[object] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    with caplog.at_level(logging.ERROR):
        context = rig(endless, embed=True)
        proxy = await context.__aenter__()
        proxy.service.fault, proxy.provider.fault = "hang", "wait"
        async with calling(proxy.url) as caller:
            await caller.send(request("POST", "/v1/other", [], b"x"))
            await caller.head()
            began = loop.time()
            await context.__aexit__(None, None, None)
            assert loop.time() - began < 6
            assert not (await _rest(caller.reader))
    assert reported == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def _rest(reader: asyncio.StreamReader) -> bool:
    """True when the stream ended as it should."""
    try:
        return (await reader.read()).endswith(b"0\r\n\r\n")
    except ConnectionError:
        return False


async def test_nothing_is_left_open_or_running_after_a_stop() -> None:
    async def once() -> None:
        async with rig(embed=True) as proxy:
            await asyncio.gather(*(proxy.chat(str(number)) for number in range(30)))
            proxy.service.fault = "close"
            await asyncio.gather(*(proxy.chat(str(number)) for number in range(30)))

    await once()
    gc.collect()
    files, tasks = _open_files(), len(asyncio.all_tasks())
    for _ in range(3):
        await once()
    gc.collect()
    assert len(asyncio.all_tasks()) == tasks
    assert _open_files() <= files


async def test_callers_who_leave_and_calls_that_break_leave_nothing_open() -> None:
    broken = 0

    async def script(seen: Seen, wire: Wire) -> None:
        nonlocal broken
        broken += 1
        if broken % 2:
            wire.reset()
        else:
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345")
            wire.close()

    async with rig(script) as proxy:
        await asyncio.gather(*(proxy.chat(str(number)) for number in range(50)))
        files = _open_files()
        for _ in range(5):
            await asyncio.gather(*(proxy.chat(str(number)) for number in range(50)))
        assert _open_files() <= files + 5


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_proxy_loads_no_database_driver_and_no_web_framework() -> None:
    code = (
        "import sys, cachesvc.proxy.run\n"
        "bad = {'asyncpg', 'sqlalchemy', 'starlette', 'onnx', 'alembic'} & set(sys.modules)\n"
        "bad |= {n for n in sys.modules if n.startswith(('cachesvc.store', 'cachesvc.service'))}\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
