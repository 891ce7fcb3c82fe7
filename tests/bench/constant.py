"""The floor and the upstream at once: a constant reply from the same server that the parts run on.

`python -m tests.bench.constant` prints two URLs and serves until it is told to stop: the constant
as a bare ASGI app, which is the upstream, and the same through Starlette, as services are written.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import uvloop
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from cachesvc.edge.server import Listener, install_stop_signals, run

if TYPE_CHECKING:
    from starlette.requests import Request

_MESSAGE = {"role": "assistant", "content": "Paris. " * 40}
BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 80, "total_tokens": 87},
    }
).encode()
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(_scope: Any, receive: Any, send: Any) -> None:
    """Read the body, reply with the constant."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def _reply(request: Request) -> Response:
    await request.body()
    return Response(BODY, media_type="application/json")


starlette = Starlette(
    routes=[Route("/v1/chat/completions", _reply, methods=["POST"])],
)


async def main() -> None:
    stop = asyncio.Event()
    install_stop_signals(asyncio.get_running_loop(), stop)
    listeners = [Listener(each, "127.0.0.1", 0, "constant reply") for each in (app, starlette)]
    await run(listeners, stop=stop, ready=lambda urls: print(*urls, flush=True))


if __name__ == "__main__":
    uvloop.run(main())
