"""OpenAI's API as far as the recipes need it: real bytes, its own thread, remembers who asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from tests.end_to_end.threaded import ThreadedServer

MODEL = "gpt-4o-mini"


@dataclass(frozen=True)
class Asked:
    """A chat completion as it came in; names of headers in lower case."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def question(self) -> str:
        content: str = self.body["messages"][-1]["content"]
        return content


class Provider(ThreadedServer):
    """`POST /v1/chat/completions`, each answered differently; any GET is a 404.

    A connection that is upgraded gets the one line it sends back in capitals. A question `status
    502` is answered with that status. Between `hold()` and `release()`, each event of a stream
    waits for a `let_go()` of its own.
    """

    def __init__(self) -> None:
        super().__init__("provider")
        self.asked: list[Asked] = []
        self.sent: dict[str, bytes] = {}
        self._held = False
        self._permits = asyncio.Semaphore(0)

    def hold(self) -> None:
        self._held = True

    def let_go(self) -> None:
        self.loop.call_soon_threadsafe(self._permits.release)

    def release(self) -> None:
        self._held = False
        self.let_go()

    def times(self, question: str) -> int:
        """How often it was asked this."""
        return sum(asked.question == question for asked in self.asked)

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n")
        line, *fields = head.split("\r\n")
        pairs = (field.partition(":") for field in fields)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if "upgrade" in headers:
            await _shout(reader, writer)
            return False
        if not line.startswith("POST "):
            await _whole(writer, b"{}", "404 Not Found")
            return True
        asked = Asked(headers, json.loads(body))
        self.asked.append(asked)
        await self._answer(asked, len(self.asked), writer)
        return True

    async def _answer(self, asked: Asked, number: int, writer: asyncio.StreamWriter) -> None:
        if asked.question.startswith("status "):
            status = asked.question.removeprefix("status ")
            await _whole(writer, b'{"error":{"message":"provider"}}', f"{status} Broken")
            return
        if not asked.body.get("stream"):
            self.sent[asked.question] = _completion(asked.question, number)
            await _whole(writer, self.sent[asked.question])
            return
        events = _events(asked.question, number)
        self.sent[asked.question] = b"".join(events)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for event in events:
            if self._held:
                await self._permits.acquire()
            writer.write(_chunk(event))
            await writer.drain()
        writer.write(_chunk(b""))
        await writer.drain()


async def _shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n")
    writer.write(b"upgrade: websocket\r\n\r\n")
    writer.write((await reader.readuntil(b"\n")).upper())
    await writer.drain()


async def _whole(writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK") -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _completion(question: str, number: int) -> bytes:
    message = {"role": "assistant", "content": f"Answer {number} to {question}"}
    body = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000 + number,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18},
    }
    return json.dumps(body, indent=1).encode()


def _events(question: str, number: int) -> list[bytes]:
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": f"{word} "}, None) for word in f"Answer {number} to {question}".split()]
    deltas.append(({}, "stop"))
    shape = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": number}
    chunks = [
        {**shape, "model": MODEL, "choices": [{"index": 0, "delta": d, "finish_reason": finish}]}
        for d, finish in deltas
    ]
    return [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"]
