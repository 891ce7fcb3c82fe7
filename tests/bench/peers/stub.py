"""The one embedding stub and the one upstream of all systems, and a vector store for LiteLLM.

`python -m tests.bench.peers.stub` prints its URL and serves until it is told to stop:
POST /v1/embeddings, /v1/chat/completions; GET /calls tells how often each was asked; /collections/*
is as much of Qdrant's REST interface as LiteLLM uses, in memory and exact.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from cachesvc.edge.server import Listener, install_stop_signals, run
from tests.bench.peers import prompts
from tests.bench.peers.qdrant import Qdrant

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADERS = [(b"content-type", b"application/json")]
_FILLER = "It depends on what you have tried before. " * 6

calls: Counter[str] = Counter()
qdrant = Qdrant()


def embeddings(asked: dict[str, Any]) -> Any:
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    calls["embeddings"] += len(texts)
    data = []
    for index, text in enumerate(texts):
        vector = prompts.vector(text)
        told: Any = vector.tolist()
        if asked.get("encoding_format") == "base64":
            told = base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": told})
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return {"object": "list", "model": asked["model"], "data": data, "usage": usage}


def completions(asked: dict[str, Any]) -> Any:
    calls["completions"] += 1
    text = asked["messages"][-1]["content"]
    content = f"{prompts.marker(text, asked['user'])} {_FILLER}"
    message = {"role": "assistant", "content": content}
    return {
        "id": f"chatcmpl-{calls['completions']}",
        "object": "chat.completion",
        "created": 1,
        "model": asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 80, "total_tokens": 89},
    }


def _nothing(_: dict[str, Any]) -> Any:
    """LiteLLM asks for /v1/models now and then."""
    return {"object": "list", "data": []}


_ROUTES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "/v1/embeddings": embeddings,
    "/v1/chat/completions": completions,
    "/calls": lambda _: dict(calls),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    asked = msgspec.json.decode(body) if body else {}
    path = scope["path"]
    if path.startswith("/collections/"):
        reply = qdrant.answer(scope["method"], path, asked)
    else:
        for name, value in scope["headers"]:
            if name == b"x-scope":
                asked["user"] = value.decode()
        reply = _ROUTES.get(path, _nothing)(asked)
    told = msgspec.json.encode(reply)
    length = (b"content-length", b"%d" % len(told))
    await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, length]})
    await send({"type": "http.response.body", "body": told})


async def main() -> None:
    stop = asyncio.Event()
    install_stop_signals(asyncio.get_running_loop(), stop)
    listener = Listener(app, "127.0.0.1", 0, "stub")
    await run([listener], stop=stop, ready=lambda urls: print(*urls, flush=True))


if __name__ == "__main__":
    uvloop.run(main())
