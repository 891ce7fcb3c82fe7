"""`[service] max_connections` and `body_idle_seconds` bound the listener."""

from __future__ import annotations

import asyncio

from cachesvc.service.run import serve
from cachesvc.settings import Service, Settings
from tests.service.serving import NOWHERE

HEAD = b"POST /cache/lookup HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


async def test_the_settings_bound_connections_and_the_wait_for_a_body() -> None:
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    listen = Service(
        listen="127.0.0.1:0", database_url=NOWHERE, max_connections=1, body_idle_seconds=0.2
    )
    serving = asyncio.create_task(
        serve(Settings(service=listen), ready=ready.set_result, stop=stop)
    )
    (url,) = await asyncio.wait_for(ready, 10)
    host, port = url.removeprefix("http://").split(":")
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
        refused, unwanted = await asyncio.open_connection(host, port)
        assert b" 503 " in await asyncio.wait_for(refused.read(), 10)
        unwanted.close()
        writer.write(HEAD + b"Content-Length: 10\r\n\r\n{")
        assert b" 408 " in await asyncio.wait_for(reader.read(), 10)
        writer.close()
    finally:
        stop.set()
        await serving
