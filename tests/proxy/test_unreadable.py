"""A body that this proxy cannot read for certain goes through untouched and is not judged."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.proxy.rig import PATH, chat_body, rig
from tests.servers import answer, ask

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

UNREADABLE = {
    "no body": b"",
    "white space": b" \r\n",
    "no json": b"hello",
    "cut json": chat_body()[:-3],
    "trailing data": chat_body() + b"{}",
    "invalid utf-8": chat_body("\x00").replace(b"\\u0000", b"\xff"),
    "a byte order mark": b"\xef\xbb\xbf" + chat_body(),
    "utf-16": chat_body().decode().encode("utf-16"),
    "a lone surrogate": chat_body("\ud800"),
    "a repeated key": chat_body()[:-1] + b', "model": "n"}',
    "a repeated key deep down": chat_body()[:-1] + b', "x": [{"a": 1, "a": 1}]}',
    "not a number": chat_body()[:-1] + b', "temperature": NaN}',
    "infinity": chat_body()[:-1] + b', "temperature": -Infinity}',
    "past float64": chat_body()[:-1] + b', "temperature": 1e999}',
    "too deep": chat_body()[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a list": b"[]",
    "no messages": b'{"model": "m"}',
    "messages of another shape": b'{"model": "m", "messages": [1]}',
    "a stream flag that is none": chat_body(stream="yes"),
    "gzip": gzip.compress(chat_body()),
}


async def _echo(seen: Seen, wire: Wire) -> None:
    await wire.send(answer(seen.body, status="400 Bad Request", headers=[("x-told", "so")]))


@pytest.mark.parametrize("name", list(UNREADABLE))
async def test_the_upstream_gets_the_very_bytes_and_the_caller_its_answer(name: str) -> None:
    body = UNREADABLE[name]
    async with rig(_echo, embed=True) as proxy:
        for _ in range(2):
            got = await proxy.post(body)
            assert (got.status, got.body, got["x-told"]) == (400, body, "so")
            assert got["x-ai-cache-status"] is None
            assert got["cache-status"] is None
        assert proxy.upstream.seen[0].body == body
        assert proxy.service.lookups == []
        assert proxy.provider.texts == []
        counted = await proxy.metrics()
        sample = 'cachesvc_lookups_total{outcome="bypass",policy="",reason="unreadable",tier=""}'
        assert counted[sample] == 2


async def test_a_post_without_any_body_is_not_judged() -> None:
    async with rig(_echo) as proxy:
        got = await ask(proxy.url, "POST", PATH)
        assert (got.status, got["x-ai-cache-status"]) == (400, None)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.binary(max_size=400), st.just(chat_body()[:40])), max_size=4))
def test_any_bytes_at_all_go_through(pieces: list[bytes]) -> None:
    import uvloop

    async def once() -> None:
        body = b"".join(pieces)
        async with rig(_echo) as proxy:
            got = await proxy.post(body)
            assert (got.status, got.body, got.clean) == (400, body, True)

    uvloop.run(once())
