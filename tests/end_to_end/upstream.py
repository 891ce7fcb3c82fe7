"""A scripted upstream for whole-product tests: real bytes over a real socket, in its own thread."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from tests.end_to_end.threaded import ThreadedServer, read_json


class ScriptedUpstream(ThreadedServer):
    """Answers every chat completion differently, plain or as a stream, and remembers each.

    `answers` holds, by (question, stream), the very bytes of the body that was sent.
    """

    def __init__(self, delay_seconds: float = 0.0) -> None:
        super().__init__("upstream")
        self.seen: Counter[tuple[str, bool]] = Counter()
        self.answers: dict[tuple[str, bool], bytes] = {}
        self._delay = delay_seconds

    @property
    def calls(self) -> int:
        """How many chat completions came in all."""
        return sum(self.seen.values())

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await read_json(reader)
        if self._delay:
            await asyncio.sleep(self._delay)
        question, stream = request["messages"][-1]["content"], request.get("stream") is True
        self.seen[question, stream] += 1
        number = self.calls
        body = _stream(question, number) if stream else _plain(question, number)
        self.answers[question, stream] = body
        if not stream:
            writer.write(_head("application/json", b"content-length: %d" % len(body)) + body)
        else:
            writer.write(_head("text/event-stream", b"transfer-encoding: chunked"))
            for frame in body.split(b"\n\n")[:-1]:
                piece = frame + b"\n\n"
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _head(media_type: str, framing: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"content-type: " + media_type.encode(), framing]
    lines += [b"set-cookie: session=secret", b"x-request-id: upstream-1"]
    return b"\r\n".join([*lines, b"", b""])


def _answer(question: str, number: int) -> str:
    # Text that a careless cache would change: odd spacing, escapes, other scripts.
    return f"Answer {number} to {question!r}:  é \u2028 \\n {{}}"


def _plain(question: str, number: int) -> bytes:
    message = {"role": "assistant", "content": _answer(question, number), "refusal": None}
    body: dict[str, Any] = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000 + number,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18},
    }
    return json.dumps(body, indent=2, ensure_ascii=number % 2 == 0).encode()


def _stream(question: str, number: int) -> bytes:
    shape = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": number}
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word + " "}, None) for word in _answer(question, number).split(" ")]
    deltas.append(({}, "stop"))
    chunks = [
        {**shape, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    frames = [b"data: " + json.dumps(chunk).encode() for chunk in chunks]
    return b"\n\n".join([*frames, b"data: [DONE]", b""])
