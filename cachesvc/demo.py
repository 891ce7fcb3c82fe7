"""A built-in upstream for the first five minutes. It is no model: it echoes, slowly.

It answers chat completions after 0.8 s, JSON or event stream, and says in every answer what it is.
"""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

THINKING_SECONDS = 0.8
PIECE_SECONDS = 0.03
NAME = "cachesvc-demo"
_JSON = [(b"content-type", b"application/json")]
_STREAM = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


class DemoUpstream:
    """An ASGI app: `POST /v1/chat/completions`, and `GET /v1/models`."""

    def __init__(self, *, thinking_seconds: float = THINKING_SECONDS) -> None:
        self._thinking = thinking_seconds
        self._calls = count(1)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and scope["path"] == "/v1/chat/completions":
            await self._complete(await _body(receive), send)
        elif scope["path"] == "/v1/models":
            models = {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": NAME}]}
            await _reply(send, 200, models)
        else:
            await _reply(send, 404, _error("the demo upstream has only chat completions"))

    async def _complete(self, body: bytes, send: Send) -> None:
        try:
            request = json.loads(body)
            question = _question(request["messages"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            await _reply(send, 400, _error("messages: a list with a user message is required"))
            return
        await asyncio.sleep(self._thinking)
        number = next(self._calls)
        text = f"[demo upstream, not a model; call {number}] You asked: {question}"
        shape = {"id": f"chatcmpl-demo-{number}", "created": 0, "model": NAME}
        usage = {"prompt_tokens": len(question.split()), "completion_tokens": len(text.split())}
        usage["total_tokens"] = sum(usage.values())
        if request.get("stream") is True:
            wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))
            await _stream(send, shape, text, usage if wants_usage else None)
            return
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {**shape, "object": "chat.completion", "choices": [choice], "usage": usage}
        await _reply(send, 200, answer)


def _question(messages: list[Any]) -> str:
    content = [m["content"] for m in messages if m["role"] == "user"][-1]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _reply(send: Send, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    headers = [*_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(
    send: Send, shape: dict[str, Any], text: str, usage: dict[str, int] | None
) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
    pieces = [word + " " for word in text.split(" ")]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in (*pieces[:-1], pieces[-1][:-1])]
    chunks = [_chunk(shape, delta, None) for delta in deltas] + [_chunk(shape, {}, "stop")]
    if usage is not None:
        chunks.append({**shape, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    for chunk in chunks:
        body = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(PIECE_SECONDS)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _chunk(shape: dict[str, Any], delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {**shape, "object": "chat.completion.chunk", "choices": [choice]}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}
