"""The one embedding stub and the one upstream of all systems, and a vector store for LiteLLM.

`python -m tests.bench.peers.stub` prints its URL and serves until it is told to stop:
POST /v1/embeddings, /v1/chat/completions; GET /calls tells how often each was asked; /collections/*
is as much of Qdrant's REST interface as LiteLLM uses, in memory and exact.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

from cachesvc.edge.server import install_stop_signals
from tests.bench.peers import prompts
from tests.bench.peers.qdrant import Qdrant

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
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


class Stub(asyncio.Protocol):
    """HTTP/1.1 with as little of its own as can be: what is left of the box is the system's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._body, self._user = b"", b"", ""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-scope":
            self._user = value.decode()
        elif name.lower() == b"expect":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        asked = msgspec.json.decode(self._body) if self._body else {}
        path = urlsplit(self._url).path.decode()
        if path.startswith("/collections/"):
            reply = qdrant.answer(self._parser.get_method().decode(), path, asked)
        else:
            if self._user:
                asked["user"] = self._user
            reply = _ROUTES.get(path, _nothing)(asked)
        told = msgspec.json.encode(reply)
        self._transport.write(_HEAD % len(told) + told)
        if not self._parser.should_keep_alive():
            self._transport.close()


async def main() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    install_stop_signals(loop, stop)
    server = await loop.create_server(Stub, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(main())
