"""A fake of OpenAI and Anthropic: equal requests get equal bytes, and the model's name says how."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.clients import cases
from tests.clients.answers import asked, chat, embeddings, messages, responses
from tests.end_to_end.threaded import ThreadedServer
from tests.servers import Seen, Wire, answer, chunk, read_request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tests.clients.answers.asked import Asked

    Plain = Callable[[Asked], dict[str, Any]]
    Frames = Callable[[Asked], list[bytes]]

_PLAIN: dict[str, Plain] = {
    "/v1/chat/completions": chat.plain,
    "/v1/completions": chat.plain_text,
    "/v1/responses": responses.plain,
    "/v1/messages": messages.plain,
    "/v1/embeddings": embeddings.plain,
}
_FRAMES: dict[str, Frames] = {
    "/v1/chat/completions": chat.frames,
    "/v1/completions": chat.frames_text,
    "/v1/responses": responses.frames,
    "/v1/messages": messages.frames,
}
_WORDS = {
    200: "200 OK",
    400: "400 Bad Request",
    401: "401 Unauthorized",
    429: "429 Too Many Requests",
    500: "500 Internal Server Error",
}
_OWN_HEADERS = (("x-request-id", "req_fake"), ("request-id", "req_fake"), ("set-cookie", "a=b"))
# Tells the SDKs not to try again: they would wait between their tries.
_NO_RETRY = (("x-should-retry", "false"), ("retry-after-ms", "1"))


class Upstream(ThreadedServer):
    """Counts, by (credential, case), what came, what was answered well, and who left early."""

    def __init__(self) -> None:
        super().__init__("clients-upstream")
        self.calls: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        seen = await read_request(reader, writer)
        if seen is None:
            return False
        request = asked.read(seen.body)
        who = _credential(seen), cases.case_of(request.model)
        self.calls[who] += 1
        return await self._answer(_path(seen), request, who, Wire(reader, writer))

    async def _answer(self, path: str, request: Asked, who: tuple[str, str], wire: Wire) -> bool:
        kind = cases.scenario(who[1])
        if kind in cases.LEFT:
            return await self._until_they_leave(path, request, who, wire)
        if kind in cases.STATUSES:
            await wire.send(_error(path, cases.STATUSES[kind], _NO_RETRY))
        elif kind == "flaky" and self.calls[who] % 2:
            await wire.send(_error(path, 500, (("retry-after-ms", "1"),)))
        elif kind in cases.BROKEN:
            *frames, last = _FRAMES[path](request)[:5]
            await _stream(wire, [*frames, last[:9]], whole=False)
            wire.close() if kind == "cut" else wire.reset()
            return False
        elif kind == "fault":
            await _stream(wire, [*_FRAMES[path](request)[:5], _fault(path)], whole=True)
        else:
            self.answered[who] += 1
            await self._answer_well(path, request, kind, wire)
        return True

    async def _answer_well(self, path: str, request: Asked, kind: str, wire: Wire) -> None:
        if request.stream:
            await _stream(wire, _FRAMES[path](request), whole=True)
            return
        value = _PLAIN[path](request) if path in _PLAIN else _MODELS
        body = json.dumps(value, indent=1, ensure_ascii=kind != "plain").encode()
        if kind == "gzip":
            packed = gzip.compress(body, mtime=0)
            headers = (*_OWN_HEADERS, ("content-encoding", "gzip"))
            await wire.send(answer(packed, headers=headers))
        else:
            await wire.send(answer(body, headers=_OWN_HEADERS))

    async def _until_they_leave(
        self, path: str, request: Asked, who: tuple[str, str], wire: Wire
    ) -> bool:
        if cases.scenario(who[1]) == "slow":
            await wire.send(_head() + b"".join(map(chunk, _FRAMES[path](request)[:5])))
        await wire.gone()
        self.left[who] += 1
        return False


_MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": ""}]}


def _head() -> bytes:
    fields = ("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")
    lines = [f"{name}: {value}" for name, value in (*fields, *_OWN_HEADERS)]
    return "\r\n".join([f"HTTP/1.1 {_WORDS[200]}", *lines, "", ""]).encode()


async def _stream(wire: Wire, frames: list[bytes], *, whole: bool) -> None:
    """One chunk per event, so that they arrive one by one; not `whole`: the last one is missing."""
    await wire.send(_head())
    for piece in frames:
        await wire.send(chunk(piece))
    if whole:
        await wire.send(chunk(b""))


def _error(path: str, status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
    worded = messages.error(status) if path == "/v1/messages" else chat.error(status)
    body = json.dumps(worded, ensure_ascii=False).encode()
    return answer(body, status=_WORDS[status], headers=(*_OWN_HEADERS, *headers))


def _fault(path: str) -> bytes:
    by_path = {"/v1/messages": messages.fault, "/v1/responses": responses.fault}
    return by_path.get(path, chat.fault)()


def _path(seen: Seen) -> str:
    return seen.line.split(" ")[1].partition("?")[0]


def _credential(seen: Seen) -> str:
    given = seen.values("x-api-key") or seen.values("authorization") or [""]
    return given[0].removeprefix("Bearer ")
