"""What cannot be read is 400, what is out of bounds 422; the field is named and no query is made.

The service here has a database that does not exist: a refusal that came all the same needed none.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.service.serving import KEY, MESSAGEPACK, NOWHERE, Api, Running, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = {"response": {"a": 1}}
NAN, INF = float("nan"), float("inf")


def bad(*words: str, **fields: Any) -> Any:
    """400 for a lookup or put that would be right without `fields`."""
    return pytest.param(fields, words, id=f"{next(iter(fields), 'none')}-{words[0]}")


MISSING_OR_WRONG_TYPE = [
    bad("policy_id", policy_id=None),
    bad("policy_id", policy_id=7),
    bad("embedding", "exact_key", exact_key=None),
    bad("exact_key", "expected str", exact_key=7),
    bad("partition", partition=["a"]),
    bad("embedding", embedding=7),
    bad("embedding", embedding={"a": 1}),
    bad("embedding[1]", "bool", embedding=[1.0, True]),
    bad("embedding[0]", embedding=[None]),
    bad("embedding[0]", embedding=["1"]),
    bad("embedding", "base64", embedding="not base64!"),
    bad("scope", scope=5),
    bad("space", space=["a"]),
    bad("prompt_text", prompt_text=5),
]
WRONG_TYPE_OF_LOOKUP = [
    bad("threshold", "bool", threshold=True),
    bad("threshold", "str", threshold="0.9"),
    bad("top_k", "bool", top_k=True),
    bad("top_k", "float", top_k=1.5),
    bad("after_exact", after_exact=1),
    bad("max_age_seconds", "bool", max_age_seconds=False),
]
WRONG_TYPE_OF_PUT = [
    bad("response", "body", response=None),
    bad("response", "body", body="AAAA", media_type="text/plain"),
    bad("media_type", response=None, body="AAAA"),
    bad("media_type", media_type="text/plain"),
    bad("body", "base64", response=None, body="!", media_type="text/plain"),
    bad("body", response=None, body=[1], media_type="text/plain"),
    bad("prompt_tokens", "bool", prompt_tokens=True),
    bad("completion_tokens", completion_tokens=1.5),
    bad("ttl_seconds", "bool", ttl_seconds=True),
    bad("generation", generation="1"),
    bad("tags[1]", tags=["a", 1]),
    bad("tags", tags="a"),
    bad("model", model=1),
    bad("upstream_ms", "bool", upstream_ms=True),
]
OUT_OF_BOUNDS = [
    bad("policy_id", policy_id="a b"),
    bad("policy_id", policy_id=""),
    bad("policy_id", policy_id="x" * 129),
    bad("exact_key", "64", exact_key="ab"),
    bad("exact_key", "64", exact_key="g" * 64),
    bad("exact_key", "64", exact_key=KEY + "\n"),
    bad("exact_key", "64", exact_key="٣" * 64),
    bad("partition", "64", partition=""),
    bad("scope", "256", scope="x" * 257),
    bad("scope", "U+0000", scope="a\0"),
    bad("space", "256", space="x" * 257),
    bad("embedding", "1 to 3984", embedding=[]),
    bad("embedding", "3985", embedding=[1.0] * 3985),
    bad("embedding", "norm", embedding=[0.0, 0.0]),
    bad("embedding", "norm", embedding=[1e-13, 0.0]),
    bad("embedding", "float32", embedding="AAAA"),
]
OUT_OF_BOUNDS_OF_LOOKUP = [
    bad("threshold", threshold=1.01),
    bad("threshold", threshold=-0.01),
    bad("top_k", "1 to 32", top_k=0),
    bad("top_k", "1 to 32", top_k=33),
    bad("max_age_seconds", max_age_seconds=-1),
]
OUT_OF_BOUNDS_OF_PUT = [
    bad("prompt_tokens", prompt_tokens=-1),
    bad("completion_tokens", completion_tokens=2**32),
    bad("ttl_seconds", ttl_seconds=0),
    bad("generation", generation=-1),
    bad("generation", generation=2**63),
    bad("tags", "16", tags=["a"] * 17),
    bad("tags", "128", tags=["a" * 129]),
    bad("tags", tags=[""]),
    bad("model", "256", model="x" * 257),
    bad("media_type", response=None, body="AAAA", media_type="text/plain\r\nx: y"),
    bad("media_type", "256", response=None, body="AAAA", media_type="x" * 257),
    bad("upstream_ms", upstream_ms=-1),
]


def lookup(api: Api, fields: dict[str, Any]) -> Any:
    return api.call("POST", "/cache/lookup", {"policy_id": "p", "exact_key": KEY, **fields})


def put(api: Api, fields: dict[str, Any]) -> Any:
    return api.call("POST", "/cache/put", {"policy_id": "p", "exact_key": KEY, **ANSWER, **fields})


@pytest.mark.parametrize(("fields", "words"), MISSING_OR_WRONG_TYPE + WRONG_TYPE_OF_LOOKUP)
def test_a_lookup_of_a_wrong_shape_is_400(
    nowhere: Api, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(lookup(nowhere, fields), 400, "BAD_REQUEST", *words)


@pytest.mark.parametrize(("fields", "words"), MISSING_OR_WRONG_TYPE + WRONG_TYPE_OF_PUT)
def test_a_put_of_a_wrong_shape_is_400(
    nowhere: Api, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(put(nowhere, fields), 400, "BAD_REQUEST", *words)


@pytest.mark.parametrize(("fields", "words"), OUT_OF_BOUNDS + OUT_OF_BOUNDS_OF_LOOKUP)
def test_a_lookup_out_of_bounds_is_422(
    nowhere: Api, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(lookup(nowhere, fields), 422, "INVALID", *words)


@pytest.mark.parametrize(("fields", "words"), OUT_OF_BOUNDS + OUT_OF_BOUNDS_OF_PUT)
def test_a_put_out_of_bounds_is_422(
    nowhere: Api, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(put(nowhere, fields), 422, "INVALID", *words)


@pytest.fixture(scope="module")
def nowhere_packed(nowhere: Api) -> Iterator[Api]:
    api = Api(str(nowhere.http.base_url), format=MESSAGEPACK)
    yield api
    api.close()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"embedding": struct.pack("<2f", NAN, 1)}, "embedding"),
        ({"embedding": struct.pack("<2f", INF, 1)}, "embedding"),
        ({"embedding": [NAN, 1.0]}, "embedding"),
        ({"embedding": [INF, 1.0]}, "embedding"),
        ({"threshold": NAN}, "threshold"),
        ({"max_age_seconds": NAN}, "max_age_seconds"),
        ({"max_age_seconds": INF}, "max_age_seconds"),
    ],
)
def test_what_is_not_finite_is_422(nowhere_packed: Api, fields: dict[str, Any], field: str) -> None:
    refused(lookup(nowhere_packed, fields), 422, "INVALID", field)


def test_a_number_past_float64_is_422(nowhere: Api) -> None:
    body = b'{"policy_id":"p","embedding":[1,1e400]}'
    refused(nowhere.call("POST", "/cache/lookup", body), 422, "INVALID", "embedding[1]", "finite")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ("body",)),
        (b"{", ("body",)),
        (b"[]", ("body",)),
        (b"null", ("body",)),
        (b'{"policy_id":"p"} {}', ("body",)),
        (b'{"policy_id":"p","embedding":[NaN]}', ("body",)),
        (b'{"policy_id":"p\xff"}', ("body", "UTF-8")),
        (b'{"policy_id":"p","exact_key":"a","unknown":"\xff"}', ("body", "UTF-8")),
        (b'{"policy_id":"p","unknown":"\xed\xa0\x80"}', ("body", "UTF-8")),
        (b'{"policy_id":"p","prompt_text":"\\ud800"}', ("body",)),
        (b'{"policy_id":"p","unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ("deep",)),
        (b'{"policy_id":"p","top_k":' + b"9" * 10_000 + b"}", ("top_k",)),
    ],
)
def test_what_is_no_request_at_all_is_refused(
    nowhere: Api, body: bytes, words: tuple[str, ...]
) -> None:
    status = 422 if words == ("top_k",) else 400
    code = "INVALID" if status == 422 else "BAD_REQUEST"
    refused(nowhere.call("POST", "/cache/lookup", body), status, code, *words)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'"\xff"', id="not-utf-8"),
        pytest.param(b'"\\ud800"', id="lone-surrogate"),
        pytest.param(b'{"a":1,}', id="not-json"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="too-deep"),
    ],
)
def test_a_response_that_is_no_json_text_is_400_in_both_formats(
    nowhere: Api, nowhere_packed: Api, text: bytes
) -> None:
    body = b'{"policy_id":"p","exact_key":"%s","response":%s}' % (KEY.encode(), text)
    refused(nowhere.call("POST", "/cache/put", body), 400, "BAD_REQUEST", "body")
    refused(put(nowhere_packed, {"response": text}), 400, "BAD_REQUEST", "response")


@pytest.mark.parametrize("response", [{"a": 1}, "text", 5, True])
def test_a_response_in_messagepack_is_a_bin_of_json_text(
    nowhere_packed: Api, response: object
) -> None:
    refused(put(nowhere_packed, {"response": response}), 400, "BAD_REQUEST", "response", "bin")


@pytest.mark.parametrize("response", [None, b"null", b" null\n"])
def test_a_null_response_is_an_absent_one_in_messagepack_too(
    nowhere_packed: Api, response: object
) -> None:
    reply = put(nowhere_packed, {"response": response})
    refused(reply, 400, "BAD_REQUEST", "exactly one of response and body")


def test_messagepack_that_is_none_is_400(nowhere_packed: Api) -> None:
    deep = b"\x82\xa9policy_id\xa1p\xa1x" + b"\x91" * 100_000
    for body in (b"", b"\xc1", b"\x81\xa9policy_id\xa1\xff", deep):
        refused(nowhere_packed.call("POST", "/cache/lookup", body), 400, "BAD_REQUEST")


def test_a_purge_must_select_something(nowhere: Api) -> None:
    def purge(fields: dict[str, Any]) -> Any:
        return nowhere.call("POST", "/cache/purge", fields)

    refused(purge({}), 400, "BAD_REQUEST", "at least one")
    refused(purge({"dry_run": True}), 400, "BAD_REQUEST", "at least one")
    refused(purge({"policy_id": None}), 400, "BAD_REQUEST", "at least one")
    refused(purge({"tags": []}), 400, "BAD_REQUEST", "at least one")
    refused(purge({"tags": "a"}), 400, "BAD_REQUEST", "tags")
    refused(purge({"entry_id": "nope"}), 422, "INVALID", "entry_id", "UUID")
    refused(purge({"older_than_seconds": -1}), 422, "INVALID", "older_than_seconds")
    refused(purge({"policy_id": "a b"}), 422, "INVALID", "policy_id")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "body"),
        (b"[]", 400, "body"),
        (b'{"threshold":"high"}', 400, "threshold"),
        (b'{"threshold":true}', 400, "threshold"),
        (b'{"thresholds":1}', 422, "thresholds"),
        (b'{"threshold":1.5}', 422, "threshold"),
        (b'{"threshold":1e400}', 422, "policy.threshold: must be finite"),
        (b'{"applies_to":"team:x"}', 422, "applies_to"),
        (b'{"ttl_seconds":0}', 422, "ttl_seconds"),
        (b'{"tiers":[]}', 422, "tiers"),
        (b'{"id":"another"}', 422, "policy.id"),
    ],
)
def test_a_policy_out_of_bounds_is_refused_by_name(
    nowhere: Api, body: bytes, status: int, word: str
) -> None:
    code = "BAD_REQUEST" if status == 400 else "INVALID"
    refused(nowhere.call("PUT", "/policies/p", body), status, code, word)
    refused(nowhere.call("PUT", "/policies/p%20q", b"{}"), 422, "INVALID", "policy_id")


def test_what_is_right_reaches_for_the_database(nowhere: Api) -> None:
    """The counter-proof: these refusals did not come from somewhere else."""
    reply = lookup(nowhere, {})
    refused(reply, 503, "UNAVAILABLE")
    assert reply.headers["retry-after"] == "1"


def test_a_body_over_the_limit_is_413_however_it_is_sent() -> None:
    limit = 1 << 16
    with Running(NOWHERE, {"max_request_bytes": limit}) as service:
        api = Api(service.url)
        too_long = msgspec.json.encode({"policy_id": "p", "prompt_text": "x" * limit})

        def chunks() -> Iterator[bytes]:
            yield too_long[: limit // 2]
            yield too_long[limit // 2 :]

        headers = {"content-type": "application/json"}
        whole = api.http.post("/cache/lookup", content=too_long, headers=headers)
        refused(whole, 413, "TOO_LARGE", "max_request_bytes", f"{limit:,}")
        chunked = api.http.post("/cache/lookup", content=chunks(), headers=headers)
        refused(chunked, 413, "TOO_LARGE", "max_request_bytes")
        fits = msgspec.json.encode({"policy_id": "p", "prompt_text": ""})
        fits = fits.replace(b'""', b'"%s"' % (b"x" * (limit - len(fits))))
        assert len(fits) == limit
        refused(api.http.post("/cache/lookup", content=fits, headers=headers), 400, "BAD_REQUEST")
        api.close()
