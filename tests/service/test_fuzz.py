"""Whatever is sent, the answer has a shape; and what is kept is kept to the byte."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.serving import JSON, KEY, MESSAGEPACK, Api, decoded

if TYPE_CHECKING:
    import httpx

FIELDS = st.sampled_from(
    [
        *("policy_id", "embedding", "exact_key", "partition", "scope", "space", "threshold"),
        *("top_k", "max_age_seconds", "after_exact", "response", "body", "media_type", "tags"),
        *("ttl_seconds", "generation", "prompt_text", "prompt_tokens", "model", "upstream_ms"),
    ]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.just(KEY)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
REQUESTS = st.dictionaries(FIELDS, VALUES, max_size=6)
PATHS = st.sampled_from(["/cache/lookup", "/cache/put", "/cache/purge", "/dp/cache/lookup"])
# The service is the same for all examples, which is what is wanted here.
FAST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def has_a_shape(reply: httpx.Response) -> bool:
    """A refusal, or 503: there is no database behind it."""
    error = decoded(reply)["error"]
    return reply.status_code in (400, 415, 422, 503) and {"code", "message"} == set(error)


@FAST
@given(path=PATHS, body=st.binary(max_size=200), media_type=st.sampled_from([JSON, MESSAGEPACK]))
def test_bytes_at_random_are_refused(nowhere: Api, path: str, body: bytes, media_type: str) -> None:
    assert has_a_shape(nowhere.call("POST", path, body, content_type=media_type))


@FAST
@given(path=PATHS, fields=REQUESTS, packed=st.booleans())
def test_fields_at_random_are_refused_or_right(
    nowhere: Api, path: str, fields: dict[str, Any], packed: bool
) -> None:
    fields = {"policy_id": "p", "exact_key": KEY, **fields}
    body = json.dumps(fields).encode()
    if packed:
        body = msgspec.msgpack.encode(msgspec.json.decode(body))
    media_type = MESSAGEPACK if packed else JSON
    assert has_a_shape(nowhere.call("POST", path, body, content_type=media_type))


@FAST
@given(document=st.dictionaries(st.sampled_from(["threshold", "ttl_seconds", "tiers"]), VALUES))
def test_policies_at_random_are_refused_or_right(nowhere: Api, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    assert has_a_shape(nowhere.call("PUT", "/policies/p", body))


@settings(parent=FAST, max_examples=60)
@given(value=VALUES.filter(lambda value: value is not None), indent=st.sampled_from([None, 1, 3]))
def test_any_json_comes_back_to_the_byte(
    api: Api, packed: Api, value: Any, indent: int | None
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=indent == 1).encode()
    api.ok("PUT", "/policies/fuzz", {"sharing": "shared"})
    head = b'{"policy_id":"fuzz","exact_key":"%s","response":' % KEY.encode()
    assert api.ok("POST", "/cache/put", head + text + b"}")["stored"]
    assert packed.lookup("fuzz", exact_key=KEY)["response"] == text
    reply = api.call("POST", "/cache/lookup", {"policy_id": "fuzz", "exact_key": KEY})
    assert reply.content.endswith(b'"response":' + text + b"}")
