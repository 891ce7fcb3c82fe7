"""A body as large as is allowed holds nobody else up: what is too long is refused by its length."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from cachesvc.core.vectors import read_vector
from cachesvc.errors import BadRequest, Invalid, TooLarge
from cachesvc.service import codec
from cachesvc.service.codec import Format
from cachesvc.service.lengths import LARGE
from tests.service.serving import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 16 * 1024 * 1024
HELD_SECONDS = 0.15  # of a loop that nobody else runs on meanwhile; it was over 0.6
MANY = (LIMIT - 100) // 4
HEAD = b'{"policy_id":"p","exact_key":"%s",' % KEY.encode()


def packed(field: bytes, value: bytes) -> bytes:
    return b"\x82\xa9policy_id\xa1p" + bytes([0xA0 + len(field)]) + field + value


JSON, PACKED = Format.JSON, Format.MESSAGEPACK
TOO_LONG = {
    "numbers": (JSON, b'{"policy_id":"p","embedding":[' + b"0.1," * (MANY - 20) + b"1]}"),
    "digits": (JSON, b'{"policy_id":"p","embedding": [' + b"1," * (2 * MANY - 40) + b"1]}"),
    "base64": (JSON, b'{"policy_id":"p","embedding":"' + b"AAAA" * (MANY // 12 * 12) + b'"}'),
    "array 32": (
        PACKED,
        packed(b"embedding", b"\xdd" + (3 * MANY).to_bytes(4, "big") + b"\x01" * 3 * MANY),
    ),
    "array 16": (
        PACKED,
        packed(b"embedding", b"\xdc\xff\xff" + b"\xca\x3f\x80\x00\x00" * 65535),
    ),
    "bin": (
        PACKED,
        packed(
            b"embedding",
            b"\xc6" + (2 * MANY // 4 * 4).to_bytes(4, "big") + bytes(2 * MANY // 4 * 4),
        ),
    ),
    "tags": (JSON, HEAD + b'"response":1,"tags":[' + b'"",' * (MANY - 100) + b'""]}'),
}


def held(read: Callable[[], object]) -> float:
    """Seconds for which `read`, which must refuse, keeps everybody else waiting."""
    best = 60.0
    for _ in range(3):
        began = time.perf_counter()
        with contextlib.suppress(Invalid, BadRequest, TooLarge):
            read()
            pytest.fail("it was not refused")
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.parametrize("what", TOO_LONG)
def test_a_list_that_is_too_long_is_refused_before_it_is_read(what: str) -> None:
    format, body = TOO_LONG[what]
    assert len(body) <= LIMIT
    field = "tags" if what == "tags" else "embedding"

    def read() -> None:
        if field == "tags":
            codec.read_put(body, format)
        else:
            read_vector(codec.read_lookup(body, format).embedding or [])

    with pytest.raises(Invalid, match=f"^{field}: ") as caught:
        read()
    assert "must be" in caught.value.message
    assert held(read) < HELD_SECONDS


def test_a_policy_is_no_large_document() -> None:
    body = b"{" + b",".join(b'"%d":1' % number for number in range(1_000_000)) + b"}"
    with pytest.raises(TooLarge, match="policy"):
        codec.read_policy_body(body, JSON, "p")
    assert held(lambda: codec.read_policy_body(body, JSON, "p")) < HELD_SECONDS


@pytest.mark.parametrize("format", [JSON, PACKED])
def test_a_large_body_with_short_lists_is_read_as_ever(format: Format) -> None:
    request = {
        "policy_id": "p",
        "embedding": [0.123456789012345] * 3984,
        "tags": ["\U0001f600" * 128] * 16,
        "prompt_text": "x" * LARGE,
        "body": b"y" * LARGE,
        "media_type": "text/plain",
    }
    encode = msgspec.json.encode if format is JSON else msgspec.msgpack.encode
    read = codec.read_put(encode(request), format)
    assert read.embedding == request["embedding"]
    assert read.tags == request["tags"]
    assert read.body == request["body"]
    escaped = msgspec.json.encode({"policy_id": "p", "prompt_text": "x" * LARGE})
    wide = escaped[:-1] + b',"tags":[' + b",".join([b'"' + b"\\ud83d\\ude00" * 128 + b'"'] * 16)
    assert codec.read_put(wide + b"]}", JSON).tags == ["\U0001f600" * 128] * 16


def test_a_large_body_of_a_wrong_shape_is_400_as_ever() -> None:
    filler = b'"prompt_text":"' + b"x" * LARGE + b'"'
    for wrong, word in (
        (b'"embedding":{"a":1}', "embedding"),
        (b'"embedding":[1,"a"]', r"embedding\[1\]"),
        (b'"tags":1', "tags"),
        (b'"tags":[}', "body"),
    ):
        body = b'{"policy_id":"p",' + filler + b"," + wrong + b"}"
        with pytest.raises(BadRequest, match=word):
            codec.read_put(body, JSON)
