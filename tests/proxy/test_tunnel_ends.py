"""Upgrades whose ends come at a bad time, or not at all."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress

import pytest

from tests.proxy.rig import eventually, rig
from tests.proxy.upgrading import AGREED, OFFER, agreed, before
from tests.servers import calling, request


async def test_each_half_closes_by_itself() -> None:
    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(AGREED)
        writer.write(b"all: " + await reader.read())  # it answers when the caller has ended

    async with before(patient) as proxy, calling(proxy.url) as caller:
        await agreed(caller)
        await caller.send(b"question")
        caller.writer.write_eof()
        assert await caller.reader.read() == b"all: question"


async def _refused_port() -> int:
    with socket.socket() as bare:
        bare.bind(("127.0.0.1", 0))
        return int(bare.getsockname()[1])


async def test_an_upstream_that_is_away_is_a_502_in_the_protocols_shape() -> None:
    async with (
        rig(upstream=f"http://127.0.0.1:{await _refused_port()}") as proxy,
        calling(proxy.url) as caller,
    ):
        await caller.send(request("GET", "/v1/realtime", OFFER) + b"behind")
        got = await caller.got("GET")
        assert got.status == 502
        assert set(json.loads(got.body)["error"]) == {"message", "type", "param", "code"}
        assert await caller.reader.read() == b""


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101", b"SSH-2.0-OpenSSH\r\n\r\n"])
async def test_an_upstream_that_does_not_answer_http_is_a_502(said: bytes) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    async with before(peer) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/realtime", OFFER))
        if said.startswith(b"HTTP"):  # the beginning of an answer is sent on, then broken off
            assert await caller.reader.read() == said
        else:
            assert (await caller.got("GET")).status == 502


async def test_an_upstream_that_says_nothing_is_a_504() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with before(peer, upstream_idle_seconds=0.2) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/realtime", OFFER))
        assert (await caller.got("GET")).status == 504


async def test_a_tunnel_in_which_nothing_moves_is_broken_off_at_both_ends() -> None:
    gone = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(AGREED)
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with before(peer, upstream_idle_seconds=0.3) as proxy, calling(proxy.url) as caller:
        await agreed(caller)
        with pytest.raises(ConnectionResetError):
            await caller.reader.read()
        await gone.wait()


async def test_a_caller_that_leaves_before_the_answer_is_gone_for_the_upstream() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with before(peer) as proxy:
        async with calling(proxy.url) as caller:
            await caller.send(request("GET", "/v1/realtime", OFFER))
            await asked.wait()
        await gone.wait()


async def test_an_end_that_does_not_read_stops_the_other() -> None:
    """Both ways: what is on its way is bounded, and none of it is lost."""
    sent = 0
    go = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(AGREED)
        for _ in range(64):
            writer.write(bytes(2**20))
            await writer.drain()
            sent += 2**20
        writer.write_eof()
        await go.wait()
        total = 0
        while data := await reader.read(2**20):
            total += len(data)
        assert total == 64 * 2**20

    async with before(peer) as proxy, calling(proxy.url) as caller:
        caller.reader._limit = 2**16  # type: ignore[attr-defined]
        await agreed(caller)
        stood = -1
        while stood != sent:
            stood = sent
            await asyncio.sleep(0.3)
        assert stood < 40 * 2**20
        got = 0
        while data := await caller.reader.read(2**20):
            got += len(data)
        assert got == 64 * 2**20
        flood = asyncio.create_task(caller.send(bytes(64 * 2**20)))
        await asyncio.wait({flood}, timeout=0.5)
        assert not flood.done()
        go.set()
        await flood
        caller.writer.write_eof()
        await eventually(caller.reader.at_eof)
