"""Embeddings over HTTP: any OpenAI-compatible `/embeddings`, and Azure OpenAI.

Wire: https://platform.openai.com/docs/api-reference/embeddings/create and
https://learn.microsoft.com/azure/ai-services/openai/reference#embeddings.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import struct
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from cachesvc.errors import ConfigError, EmbedError

if TYPE_CHECKING:
    from collections.abc import Sequence

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_MODEL = "text-embedding-3-small"
# The service's bound (core.vectors), which needs numpy: a proxy with a remote model has none.
MAX_DIMENSIONS = 3984
_MIN_NORM = 1e-12
_MAX_SPACE = 256
_MAX_REPLY_BYTES = 1024 * 1024
_MAX_REQUEST_ID = 256
# Idle connections are given up before most servers give them up (5 s).
_KEEPALIVE_SECONDS = 4.0


class _Item(msgspec.Struct):
    # Numbers from a server that does not know of base64, as the official client has it, too.
    embedding: list[float] | bytes


class _Reply(msgspec.Struct):
    data: list[_Item]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where vectors come from. `dimensions` 0 is the model's own and is not sent.

    Azure OpenAI: `model` is the deployment, `base_url` its resource (https://NAME.openai.azure.com).
    """

    name: str
    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    api_version: str = "2024-10-21"
    dimensions: int = 0
    timeout_seconds: float = 5.0
    max_input_bytes: int = 8191
    table: str = "embed"  # of the settings, for messages

    @classmethod
    def of(
        cls,
        name: str,
        *,
        base_url: str = "",
        model: str = "",
        **more: Any,
    ) -> Provider:
        """With OpenAI's defaults filled in. Raises ConfigError."""
        if name == "openai":
            base_url, model = base_url or OPENAI_URL, model or OPENAI_MODEL
        return cls(name=name, base_url=base_url.rstrip("/"), model=model, **more)

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"{self.table}.base_url: must be an http or https address")
        if url.username is not None or url.query or url.fragment:
            # It stands in the space, in messages and in logs.
            raise ConfigError(f"{self.table}.base_url: must hold no credential, query or fragment")
        if not self.model:
            raise ConfigError(f"{self.table}.model: required with provider {self.name}")
        if not _is_header_text(self.api_key):
            raise ConfigError(f"{self.table}.api_key: must be printable ASCII")
        if not 0 <= self.dimensions <= MAX_DIMENSIONS:
            raise ConfigError(f"{self.table}.dimensions: must be 0 to {MAX_DIMENSIONS}")

    @property
    def azure(self) -> bool:
        return self.name == "azure_openai"

    @property
    def space(self) -> str:
        whole = f"{self.name}:{self.base_url}:{self.model}:{self.dimensions or 'native'}"
        if len(whole) <= _MAX_SPACE:
            return whole
        tail = hashlib.sha256(whole.encode()).hexdigest()
        return f"{whole[: _MAX_SPACE - len(tail) - 1]}:{tail}"

    @property
    def url(self) -> str:
        if not self.azure:
            return f"{self.base_url}/embeddings"
        deployment, version = quote(self.model, safe=""), quote(self.api_version, safe="")
        return f"{self.base_url}/openai/deployments/{deployment}/embeddings?api-version={version}"

    @property
    def headers(self) -> dict[str, str]:
        if not self.api_key:
            return {}
        if self.azure:
            return {"api-key": self.api_key}
        return {"authorization": f"Bearer {self.api_key}"}

    def body(self, text: str) -> bytes:
        # A quarter of the bytes, and what OpenAI's own client asks for.
        asked: dict[str, Any] = {"input": text, "encoding_format": "base64"}
        if not self.azure:
            asked["model"] = self.model
        if self.dimensions:
            asked["dimensions"] = self.dimensions
        return msgspec.json.encode(asked)


def _is_header_text(value: str) -> bool:
    return value.isascii() and value.isprintable()


class RemoteEmbedder:
    """Vectors from a provider: one call per text, one deadline per call, never retried.

    An answer that is not one finite, non-zero vector of the expected dimension is an EmbedError,
    whatever its status. Messages hold the status and the field at fault, never the answer (some
    providers repeat the key in it) and never the text.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._dimensions = provider.dimensions
        self._url = URL(provider.url, encoded=True)
        self._closed = False
        self._made: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"RemoteEmbedder({self.space!r})"

    @property
    def provider(self) -> str:
        return self._provider.name

    @property
    def space(self) -> str:
        return self._provider.space

    @property
    def _session(self) -> aiohttp.ClientSession:
        # Made on the loop that uses it. Every miss comes through here: httpx takes twice as long.
        if self._made is None:
            self._made = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._provider.headers,
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        return self._made

    async def warm(self) -> None:
        """One real call, which tries key, model and dimension. Raises EmbedError."""
        await self.embed("warm")

    async def embed(self, text: str, *, request_id: str | None = None) -> bytes | None:
        """The vector as little-endian float32, None over `max_input_bytes`. Raises EmbedError."""
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # a lone surrogate, which JSON cannot carry
            return None
        if size > self._provider.max_input_bytes:
            return None
        if self._closed:
            raise EmbedError("the embedder is closed")
        try:
            async with asyncio.timeout(self._provider.timeout_seconds):
                answer = await self._ask(self._provider.body(text), request_id)
        except TimeoutError as exc:
            raise EmbedError(
                f"{self.provider}: no answer within {self._provider.timeout_seconds:g} s"
            ) from exc
        except (aiohttp.ClientError, ValueError, OSError) as exc:
            raise EmbedError(f"{self.provider}: call failed ({type(exc).__name__})") from exc
        return self._read(answer)

    async def _ask(self, body: bytes, request_id: str | None) -> bytes:
        headers = {"content-type": "application/json"}
        if request_id and len(request_id) <= _MAX_REQUEST_ID and _is_header_text(request_id):
            headers["x-request-id"] = request_id
        asked = self._session.post(self._url, data=body, headers=headers, allow_redirects=False)
        async with asked as reply:
            if reply.status != HTTPStatus.OK:
                raise EmbedError(f"{self.provider}: answered {reply.status}")
            answer = bytearray()
            async for piece in reply.content.iter_any():
                answer += piece
                if len(answer) > _MAX_REPLY_BYTES:
                    raise EmbedError(f"{self.provider}: answered over {_MAX_REPLY_BYTES} bytes")
            return bytes(answer)

    def _read(self, answer: bytes) -> bytes:
        try:
            data = msgspec.json.decode(answer, type=_Reply).data
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise EmbedError(f"{self.provider}: answered something else than embeddings") from exc
        if len(data) != 1:
            raise EmbedError(f"{self.provider}: answered {len(data)} vectors to one text")
        return self._checked(data[0].embedding)

    def _checked(self, told: list[float] | bytes) -> bytes:
        values, packed = self._both_forms(told)
        count = len(values)
        if not 1 <= count <= MAX_DIMENSIONS:
            raise EmbedError(
                f"{self.provider}: answered {count} dimensions; must be 1 to {MAX_DIMENSIONS}"
                f" (set {self._provider.table}.dimensions)"
            )
        if count != (self._dimensions or count):
            raise EmbedError(
                f"{self.provider}: answered {count} dimensions; must be {self._dimensions}"
            )
        norm = math.hypot(*values)
        if not math.isfinite(norm):
            raise EmbedError(f"{self.provider}: a value is out of float32's range")
        if norm < _MIN_NORM:
            raise EmbedError(f"{self.provider}: answered a zero vector")
        self._dimensions = count
        return packed

    def _both_forms(self, told: list[float] | bytes) -> tuple[Sequence[float], bytes]:
        """The numbers, and the same as little-endian float32."""
        try:
            if isinstance(told, bytes):
                return struct.unpack(f"<{len(told) // 4}f", told), told
            return told, struct.pack(f"<{len(told)}f", *told)
        except OverflowError as exc:
            raise EmbedError(f"{self.provider}: a value is out of float32's range") from exc
        except struct.error as exc:
            raise EmbedError(f"{self.provider}: answered base64 of no float32 numbers") from exc

    async def close(self) -> None:
        self._closed = True
        if self._made is not None:
            await self._made.close()
