"""The cache inside a program that forks, that forgets to close, and that ends."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from tests.inprocess.rig import inside
from tests.proxy.rig import SECRET, always, completion
from tests.servers import answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.inprocess.rig import Inside

_BEGIN = """
import os, sys, httpx, cachesvc
def make():
    return cachesvc.CachingTransport(
        service_url={service!r}, scope_secret={secret!r},
        settings={{"data_dir": {folder!r}, "embed.provider": "none",
                  "proxy.lookup_budget_ms": 5000}})
url = {url!r}
body = {{"model": "m", "messages": [{{"role": "user", "content": "Hello"}}]}}
def call(client):
    got = client.post(url, json=body)
    return got.headers.get("x-ai-cache-status"), len(got.content)
"""
_LENGTH = len(completion("answer 1"))


async def _run(rig: Inside, folder: Path, code: str) -> list[str]:
    """The lines that a program prints; it ends within 20 s, by itself and well."""
    begin = _BEGIN.format(
        service=rig.service.server.url, secret=SECRET, folder=str(folder), url=rig.url
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", begin + code),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode().splitlines()


async def test_a_fork_goes_on_without_the_cache_and_ends(tmp_path: Path) -> None:
    code = """
with httpx.Client(transport=make()) as client:
    print(*call(client), flush=True)
    pid = os.fork()
    if pid == 0:
        print(*call(httpx.Client(transport=client._transport)), flush=True)
        sys.exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
    print(call(client)[0])
"""
    async with inside(tmp_path) as rig:
        lines = await _run(rig, tmp_path, code)
        assert lines == [f"MISS {_LENGTH}", f"None {_LENGTH}", "0", "HIT"]


async def test_a_fork_may_have_a_cache_of_its_own(tmp_path: Path) -> None:
    code = """
with httpx.Client(transport=make()) as client:
    print(*call(client), flush=True)
pid = os.fork()
if pid == 0:
    with httpx.Client(transport=make()) as client:
        print(*call(client), flush=True)
    sys.exit(0)
print(os.waitpid(pid, 0)[1])
"""
    async with inside(tmp_path) as rig:
        lines = await _run(rig, tmp_path, code)
        assert lines == [f"MISS {_LENGTH}", f"HIT {_LENGTH}", "0"]


@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_program_that_never_closes_still_hands_over_its_last_answer(
    tmp_path: Path, size: int
) -> None:
    # The core is busy until after the program's last line, as on a loaded machine.
    code = """
import time
client = httpx.Client(transport=make())
with client.stream("POST", url, json=body) as response:
    client._transport._thread.tell(lambda: time.sleep(0.5))
    print(response.headers["x-ai-cache-status"], len(response.read()))
"""
    body = completion("x" * size)
    async with inside(tmp_path, always(answer(body))) as rig:
        assert await _run(rig, tmp_path, code) == [f"MISS {len(body)}"]
        assert [put.body for put in rig.service.puts] == [body]


async def test_a_transport_that_is_dropped_ends_its_thread(tmp_path: Path) -> None:
    code = """
import gc, threading
client = httpx.Client(transport=make())
call(client)
del client
gc.collect()
print([thread.name for thread in threading.enumerate()])
"""
    async with inside(tmp_path) as rig:
        assert await _run(rig, tmp_path, code) == ["['MainThread']"]
