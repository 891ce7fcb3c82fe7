"""A service and an embedding provider that can be broken at will, on real sockets."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from cachesvc import wire
from cachesvc.core.policy import Policy, resolve
from tests.servers import RawServer, answer

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

_PACKED = "application/msgpack"
DIMENSIONS = 8


@dataclass
class FakeService:
    """Keeps what is put, finds it again, and records every call.

    `fault`: "hang", "500", "garbage", "no answer", "403", "404" or "close"; `faulty` says which
    calls have it.
    """

    policies: dict[str, Policy] = field(default_factory=lambda: {"p": Policy(sharing="shared")})
    generation: int = 1
    fault: str = ""
    faulty: tuple[str, ...] = ("/cache/lookup", "/cache/put", "/policies")
    lookups: list[wire.LookupRequest] = field(default_factory=list)
    puts: list[wire.PutRequest] = field(default_factory=list)
    policy_calls: int = 0
    list_calls: int = 0
    broken_calls: int = 0
    reply: wire.LookupReply | None = None  # said instead of what would be found
    request_ids: list[str] = field(default_factory=list)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.server = RawServer(self._script)

    async def _script(self, seen: Seen, connection: Wire) -> None:
        path = seen.line.split(" ")[1]
        self.request_ids += seen.values("x-request-id")
        if path.startswith(self.faulty) and self.fault:
            self.broken_calls += path == "/cache/lookup"
            await self._break(connection)
            return
        if path == "/cache/lookup":
            asked = msgspec.msgpack.decode(seen.body, type=wire.LookupRequest)
            wire.check_lookup(asked)
            self.lookups.append(asked)
            await connection.send(_packed(self.reply or self._find(asked)))
        elif path == "/cache/put":
            kept = msgspec.msgpack.decode(seen.body, type=wire.PutRequest)
            wire.check_put(kept)
            if (kept.generation or 0) > self.generation:
                said = f"generation: is {kept.generation}; the current one is {self.generation}"
                await connection.send(_refusal("422 Unprocessable Entity", said))
                return
            self.puts.append(kept)
            await connection.send(
                _packed(wire.PutReply(entry_id=None, expires_at=None, stored=True, reason=""))
            )
        else:
            await connection.send(self._policies(path))

    def _policies(self, path: str) -> bytes:
        resolved = {name: resolve(p, name, self.generation) for name, p in self.policies.items()}
        name = path.removeprefix("/policies").strip("/")
        if not name:
            self.list_calls += 1
            return _packed(wire.PolicyList(policies=list(resolved.values())))
        self.policy_calls += 1
        return _packed(resolved[name]) if name in resolved else _refusal("404 Not Found")

    async def _break(self, connection: Wire) -> None:
        if self.fault == "hang":
            self.stalled.set()
            await connection.gone()
        elif self.fault == "garbage":
            await connection.send(answer(b"<html>not a cache</html>", media_type="text/html"))
        elif self.fault == "no answer":
            await connection.send(_packed(wire.LookupReply(hit=True, tier="exact", reason="exact")))
        elif self.fault == "500":
            await connection.send(_refusal("500 Internal Server Error"))
        elif self.fault == "403":
            await connection.send(_refusal("403 Forbidden"))
        elif self.fault == "404":
            await connection.send(_refusal("404 Not Found"))
        else:
            connection.reset()

    def _find(self, asked: wire.LookupRequest) -> wire.LookupReply:
        policy = self.policies[asked.policy_id]
        for kept in reversed(self.puts):
            same_key = kept.exact_key == asked.exact_key and not asked.after_exact
            if kept.scope == asked.scope and same_key and "exact" in policy.tiers:
                return self._hit(kept, "exact", 1.0)
        near = [
            (_cosine(kept, asked), kept)
            for kept in reversed(self.puts)
            if kept.scope == asked.scope
        ]
        best = max((similarity for similarity, _ in near), default=0.0)
        nearest = next((kept for similarity, kept in near if similarity == best), None)
        if nearest is not None and best >= policy.threshold:
            return self._hit(nearest, "semantic", best)
        reason = "below_threshold" if best > 0 else "no_entry"
        return wire.LookupReply(
            hit=False, tier=None, reason=reason, similarity=best, generation=self.generation
        )

    def _hit(self, kept: wire.PutRequest, tier: str, similarity: float) -> wire.LookupReply:
        return wire.LookupReply(
            hit=True,
            tier=tier,
            reason=tier,
            similarity=similarity,
            generation=self.generation,
            entry_id=str(uuid4()),
            age_seconds=7,
            expires_at="2999-01-01T00:00:00Z",
            body=kept.body or b"",
            media_type=kept.media_type or "",
        )


def _cosine(kept: wire.PutRequest, asked: wire.LookupRequest) -> float:
    if not isinstance(kept.embedding, bytes) or not isinstance(asked.embedding, bytes):
        return 0.0
    if (kept.partition, kept.space) != (asked.partition, asked.space):
        return 0.0
    a, b = (struct.unpack(f"<{len(v) // 4}f", v) for v in (kept.embedding, asked.embedding))
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b))


def _packed(value: Any, status: str = "200 OK") -> bytes:
    return answer(msgspec.msgpack.encode(value), status=status, media_type=_PACKED)


def _refusal(status: str, message: str = "a message") -> bytes:
    error = wire.ErrorReply(error=wire.ErrorDetail(code="CODE", message=message))
    return _packed(error, status)


@dataclass
class FakeProvider:
    """`POST /v1/embeddings`: a vector per text, each its own direction unless `vectors` says."""

    vectors: dict[str, list[float]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    fault: str = ""
    go: asyncio.Event = field(default_factory=asyncio.Event)  # what "wait" waits for

    def __post_init__(self) -> None:
        self.server = RawServer(self._script)

    async def _script(self, seen: Seen, connection: Wire) -> None:
        text = json.loads(seen.body)["input"]
        if text != "warm":
            self.texts.append(text)
        if self.fault == "wait":
            await self.go.wait()
        elif self.fault == "500":
            await connection.send(answer(b"no", status="500 Internal Server Error"))
            return
        elif self.fault == "garbage":
            await connection.send(answer(b'{"data": [{"embedding": "?"}]}'))
            return
        elif self.fault == "close":
            connection.reset()
            return
        vector = self.vectors.setdefault(text, self._fresh())
        await connection.send(answer(json.dumps({"data": [{"embedding": vector}]}).encode()))

    def _fresh(self) -> list[float]:
        at = len(self.vectors) % DIMENSIONS
        return [1.0 if place == at else 0.0 for place in range(DIMENSIONS)]
