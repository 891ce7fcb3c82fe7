"""The floor and the upstream at once: a constant reply from the same server that the parts run on.

`python -m tests.bench.constant` prints its URL and serves until it is told to stop.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvloop

from cachesvc.edge.server import Listener, install_stop_signals, run

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


async def main() -> None:
    stop = asyncio.Event()
    install_stop_signals(asyncio.get_running_loop(), stop)
    listener = Listener(app, "127.0.0.1", 0, "constant reply")
    await run([listener], stop=stop, ready=lambda urls: print(urls[0], flush=True))


if __name__ == "__main__":
    uvloop.run(main())
