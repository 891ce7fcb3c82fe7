"""Callers leave and upstreams fail at random: nobody hangs, and half an answer is never a whole."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from tests.proxy.rig import PATH, chat_body, events, eventually, rig
from tests.servers import PATIENCE_SECONDS, answer, calling, chunk, request

if TYPE_CHECKING:
    from tests.proxy.rig import Rig
    from tests.servers import Seen, Wire

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = events("a", "b", "c")
ROUNDS = 30


class Upstream:
    """Ends each answer in one of several ways, by the seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    async def __call__(self, seen: Seen, wire: Wire) -> None:
        end = self._random.choice(["whole", "whole", "slow", "500", "reset first", "reset", "fin"])
        await asyncio.sleep(self._random.random() * 0.02)
        if end == "reset first":
            wire.reset()
            return
        if end == "500":
            await wire.send(answer(b"{}", status="500 X"))
            return
        pieces = WHOLE.split(b"\n\n")
        await wire.send(HEAD + chunk(pieces[0] + b"\n\n"))
        await asyncio.sleep(self._random.random() * 0.02)
        if end in ("reset", "fin"):
            wire.reset() if end == "reset" else wire.close()
            return
        rest = WHOLE[len(pieces[0]) + 2 :]
        await wire.send(chunk(rest[:7]))
        await asyncio.sleep(0.01 if end == "slow" else 0)
        await wire.send(chunk(rest[7:]) + chunk(b""))


async def call(proxy: Rig, text: str, stays: float | None) -> tuple[int, bytes] | None:
    """A whole answer; None for one that was broken off, or that the caller left."""
    async with calling(proxy.url) as caller:
        await caller.send(request("POST", PATH, proxy.headers, chat_body(text, stream=True)))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if stays is None else stays):
                got = await caller.got()
        except TimeoutError:
            if stays is None:
                raise  # it was left hanging
            return None
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
    return (got.status, got.body) if got.clean else None


@pytest.mark.parametrize("seed", range(4))
async def test_callers_who_share_a_call_are_harmed_by_nobody(seed: int) -> None:
    chance = random.Random(seed)
    async with rig(Upstream(seed)) as proxy:
        async with asyncio.timeout(PATIENCE_SECONDS * 2):
            for number in range(ROUNDS):
                stays = [chance.choice([None, None, chance.random() / 20]) for _ in range(6)]
                calls = [call(proxy, f"q {number}", seconds) for seconds in stays]
                for got in await asyncio.gather(*calls):
                    assert got is None or got[0] in (500, 502) or got == (200, WHOLE)
        # No call to the upstream outlives its last reader, and what was kept is whole.
        await eventually(lambda: all(put.body == WHOLE for put in proxy.service.puts))
        found = await proxy.metrics()
        assert found['cachesvc_fail_open_total{cause="bug"}'] == 0
        assert found['cachesvc_collapsed_total{policy="p"}'] > ROUNDS
