"""Calls to the service: MessagePack both ways, over a pool of its own."""

from __future__ import annotations

import io
import re
import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from cachesvc import wire
from cachesvc.core.model import Miss, Reason, Tier
from cachesvc.core.policy import Policy
from cachesvc.errors import ConfigError, ServiceError, ServiceUnavailable

if TYPE_CHECKING:
    from cachesvc.settings import ProxyTLS

_MEDIA_TYPE = "application/msgpack"
_JSON = "application/json"
# Idle connections are given up before the service gives them up (5 s).
_KEEPALIVE_SECONDS = 4.0
_HEADER_TEXT = re.compile(r"[\x20-\x7e\x80-\xff]+")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_AT_ONCE = 2**20
# Callers bring deadlines of their own and cancel; this ends what nobody waits for.
_LOOKUP_LIMITS = aiohttp.ClientTimeout(total=60)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Found:
    """An answer from the cache, ready to be replayed. `ttl_seconds` is None where none is told."""

    reason: str
    tier: Tier
    body: bytes
    media_type: str
    entry_id: str
    similarity: float
    age_seconds: int
    ttl_seconds: int | None
    upstream_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a lookup said, and the policy's generation at that time."""

    outcome: Found | Miss
    generation: int


class _RawPolicies(msgspec.Struct):
    policies: list[dict[str, Any]]


class ServiceClient:
    """The service, seen from the proxy.

    Every call raises ServiceUnavailable when the service is away, answers 5xx, or answers what
    cannot be read, and ServiceError when it refuses (4xx).
    """

    def __init__(self, url: str, tls: ProxyTLS, *, put_timeout_seconds: float = 5.0) -> None:
        """Raises ConfigError when the certificates cannot be used."""
        self._base = url.rstrip("/")
        self._put_limits = aiohttp.ClientTimeout(total=put_timeout_seconds)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, ssl=_context(tls) or True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"accept": _MEDIA_TYPE},
        )

    async def lookup(self, asked: wire.LookupRequest, *, request_id: str | None) -> Asked:
        """An answer, or why there is none."""
        raw = await self._send("POST", "/cache/lookup", asked, request_id=request_id)
        reply = _read(raw, wire.LookupReply)
        return Asked(_found(reply) if reply.hit else _miss(reply), reply.generation)

    async def put(self, kept: wire.PutRequest, *, request_id: str | None) -> wire.PutReply:
        """Keep an answer. `stored: false` is a reply, not an error."""
        raw = await self._send(
            "POST", "/cache/put", kept, request_id=request_id, limits=self._put_limits
        )
        return _read(raw, wire.PutReply)

    async def policies(self) -> list[Policy]:
        """The policies this proxy can read.

        A policy with a field that only a newer service knows is left out: half understood, its
        rules might be broken.
        """
        found = []
        for fields in _read(await self._send("GET", "/policies"), _RawPolicies).policies:
            try:
                found.append(msgspec.convert(fields, Policy))
            except msgspec.ValidationError:
                continue
        return found

    async def policy(self, policy_id: str, *, request_id: str | None = None) -> Policy:
        """One policy as it is now."""
        raw = await self._send("GET", f"/policies/{policy_id}", request_id=request_id)
        return _read(raw, Policy)

    async def close(self) -> None:
        await self._session.close()

    async def _send(
        self,
        method: str,
        path: str,
        body: wire.LookupRequest | wire.PutRequest | None = None,
        *,
        request_id: str | None = None,
        limits: aiohttp.ClientTimeout = _LOOKUP_LIMITS,
    ) -> bytes:
        headers = {} if body is None else {"content-type": _MEDIA_TYPE}
        if request_id:
            headers["x-request-id"] = request_id
        try:
            async with self._session.request(
                method,
                URL(self._base + path, encoded=True),
                data=None if body is None else sendable(msgspec.msgpack.encode(body)),
                headers=headers,
                allow_redirects=False,
                timeout=limits,
            ) as answer:
                raw = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise ServiceUnavailable(f"{path}: no answer ({type(exc).__name__})") from exc
        if answer.status >= 300:
            raise _refusal(answer.status, raw, path)
        return raw


def sendable(body: bytes) -> bytes | io.BytesIO:
    """The body as aiohttp takes it: in one write, or in many where one would hold up the loop."""
    return body if len(body) <= _AT_ONCE else io.BytesIO(body)


def _read(raw: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except _UNREADABLE as exc:
        raise ServiceUnavailable(f"the reply is no {kind.__name__}") from exc


def _refusal(status: int, raw: bytes, path: str) -> ServiceError:
    # 3xx is nobody's answer here: as much a fault as 5xx.
    kind = ServiceError if 400 <= status < 500 else ServiceUnavailable
    try:
        error = msgspec.msgpack.decode(raw, type=wire.ErrorReply).error
    except _UNREADABLE:
        return kind(f"{path}: answered {status} without an error envelope", status=status)
    return kind(f"{path}: {error.message}", status=status, code=error.code)


def _miss(reply: wire.LookupReply) -> Miss:
    try:
        return Miss(Reason(reply.reason), reply.similarity)
    except ValueError:  # a reason of a newer service
        return Miss(Reason.NO_ENTRY, reply.similarity)


def _found(reply: wire.LookupReply) -> Found:
    body, media_type = _answer(reply)
    if not _header_text(media_type) or reply.tier not in ("exact", "semantic"):
        raise ServiceUnavailable("a hit has a media type or a tier that cannot be")
    return Found(
        reason=reply.reason,
        tier=Tier(reply.tier),
        body=body,
        media_type=media_type,
        entry_id=_header_text(reply.entry_id),
        similarity=reply.similarity,
        age_seconds=max(0, reply.age_seconds) if isinstance(reply.age_seconds, int) else 0,
        ttl_seconds=_ttl(reply.expires_at) if isinstance(reply.expires_at, str) else None,
        upstream_ms=reply.upstream_ms if isinstance(reply.upstream_ms, float) else None,
    )


def _header_text(value: object) -> str:
    """`value` where it may stand in a header, else nothing."""
    return value if isinstance(value, str) and _HEADER_TEXT.fullmatch(value) else ""


def _answer(reply: wire.LookupReply) -> tuple[bytes, str]:
    if isinstance(reply.body, bytes) and isinstance(reply.media_type, str):
        return reply.body, reply.media_type
    if isinstance(reply.response, msgspec.Raw):
        # In MessagePack a `response` is a bin of its JSON text.
        return _read(bytes(reply.response), bytes), _JSON
    raise ServiceUnavailable("a hit has no answer")


def _ttl(expires_at: str) -> int | None:
    """Seconds to go by this machine's clock: told to the caller, decided on by nobody."""
    try:
        left = datetime.fromisoformat(expires_at) - datetime.now(timezone.utc)
    except (ValueError, TypeError):
        return None
    return max(0, int(left.total_seconds()))


def _context(tls: ProxyTLS) -> ssl.SSLContext | None:
    if not tls.on:
        return None
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"proxy.tls: ca_file, cert_file or key_file cannot be used: {exc}"
        ) from exc
    return context
