"""An AISIX data plane works against us, with its own wire: `behaviours.md` 1A.

Its client is re-told here from what is known of it: which fields it sends, how it reads replies,
and where it would fail to decode.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.serving import Api, Running

POLICY = "5f1c9c0e-7a38-4a58-9d8e-3a6f0d8f1b2c"
# Field order and spelling as serde writes them; `content` is never null.
CHAT = (
    b'{"id":"chatcmpl-1","model":"gpt-4o","message":{"role":"assistant","content":"Hi \\"there\\"'
    b' \xe2\x9c\x93"},"finish_reason":{"other":"eos"},"usage":{"prompt_tokens":5,'
    b'"completion_tokens":6,"total_tokens":11,"cached_prompt_tokens":0,"reasoning_tokens":0,'
    b'"cache_creation_tokens":0,"cache_read_tokens":0}}'
)


class Usage(msgspec.Struct, forbid_unknown_fields=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0
    cache_creation_tokens: int = 0
    cache_read_tokens: int = 0


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str
    name: str | None = None
    tool_call_id: str | None = None


class ChatResponse(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    model: str
    message: Message
    finish_reason: str | dict[str, str]
    usage: Usage


class Found(msgspec.Struct):
    hit: bool
    response: ChatResponse | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    similarity: float = 0.0


def f32(values: list[float]) -> list[float]:
    """The numbers that a single-precision writer sends: 0.85 goes as 0.8500000238418579."""
    return list(struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values)))


class DataPlane:
    """The client: base URL without trailing slashes, JSON, omitted optionals."""

    def __init__(self, base: str) -> None:
        self._http = httpx.Client(trust_env=False, timeout=5)
        self._base = base.rstrip("/")

    def close(self) -> None:
        self._http.close()

    def lookup(self, embedding: list[float], threshold: float | None = None) -> Found:
        body: dict[str, Any] = {"policy_id": POLICY, "embedding": f32(embedding)}
        if threshold is not None:
            body["threshold"] = f32([threshold])[0]
        reply = self._http.post(f"{self._base}/dp/cache/lookup", json=body)
        assert reply.is_success, reply.text
        found = msgspec.json.decode(reply.content, type=Found)
        assert not (found.hit and found.response is None)
        return found

    def put(self, prompt: str, embedding: list[float], **optional: Any) -> httpx.Response:
        head = {"policy_id": POLICY, "prompt_text": prompt, "embedding": f32(embedding), **optional}
        body = json.dumps(head).encode()[:-1] + b',"response":' + CHAT + b"}"
        headers = {"content-type": "application/json"}
        return self._http.post(f"{self._base}/dp/cache/put", content=body, headers=headers)


@pytest.fixture
def plane(running: Running, api: Api) -> Iterator[DataPlane]:
    api.call("DELETE", f"/policies/{POLICY}")
    api.ok("PUT", f"/policies/{POLICY}", {"sharing": "shared", "threshold": 0.9})
    made = DataPlane(f"{running.url}///")
    yield made
    made.close()


def test_a_miss_is_decoded_as_a_miss(plane: DataPlane) -> None:
    assert plane.lookup([1.0, 0.0]) == Found(hit=False)


def test_an_answer_comes_back_as_the_object_it_was(plane: DataPlane) -> None:
    stored = plane.put("Hello?", [0.85, 0.5], prompt_tokens=5, completion_tokens=6, ttl_seconds=60)
    assert stored.status_code == 200
    assert set(stored.json()) >= {"entry_id", "expires_at"}
    found = plane.lookup([0.85, 0.5])
    assert found.response == msgspec.json.decode(CHAT, type=ChatResponse)
    assert (found.hit, found.prompt_tokens, found.completion_tokens) == (True, 5, 6)
    assert found.similarity == 1.0


def test_its_answer_is_byte_identical(plane: DataPlane, api: Api) -> None:
    plane.put("Hello?", [0.85, 0.5])
    asked = {"policy_id": POLICY, "embedding": [0.85, 0.5]}
    reply = api.call("POST", "/dp/cache/lookup", asked)
    assert b'"response":' + CHAT + b"}" in reply.content


def test_a_lookup_below_the_threshold_tells_the_similarity(plane: DataPlane) -> None:
    plane.put("Hello?", [1.0, 0.0])
    found = plane.lookup([0.5, 0.8660254])
    assert (found.hit, found.response) == (False, None)
    assert found.similarity == pytest.approx(0.5, abs=1e-3)


def test_its_threshold_may_be_left_out_or_sent_in_single_precision(plane: DataPlane) -> None:
    plane.put("Hello?", [1.0, 0.0])
    near = [0.95, 0.3122499]
    assert plane.lookup(near).hit
    assert plane.lookup(near, threshold=0.9).hit
    assert not plane.lookup(near, threshold=0.97).hit


def test_fields_that_it_may_add_are_ignored(plane: DataPlane) -> None:
    assert plane.put("Hello?", [1.0, 0.0], embedding_model="x", extra={"a": None}).is_success


def test_a_policy_that_is_gone_is_404_in_its_words(plane: DataPlane, api: Api) -> None:
    api.ok("DELETE", f"/policies/{POLICY}")
    reply = plane.put("Hello?", [1.0, 0.0])
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json"
    assert reply.content == (b'{"error":{"code":"NOT_FOUND","message":"cache_policy not found"}}')
