"""`[proxy] max_connections` bounds the listener."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tests.proxy.rig import eventually, rig
from tests.servers import ask, calling


async def test_a_connection_above_the_setting_is_answered_503_and_room_comes_back() -> None:
    async with rig(max_connections=3) as proxy:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(calling(proxy.url))
            refused = await ask(proxy.url, "GET", "/livez")
            assert refused.status == 503
            assert b"overloaded" in refused.body

        async def room() -> bool:
            return (await ask(proxy.url, "GET", "/livez")).status == 200

        await eventually(room)
