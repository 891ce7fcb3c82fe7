"""Strict parsing: whatever two parsers could read differently is not judged."""

from __future__ import annotations

import pytest

from cachesvc.core import canonical
from cachesvc.errors import Unreadable

UNREADABLE = {
    "nothing": b"",
    "white space": b"  ",
    "not JSON": b"{",
    "trailing data": b"{} {}",
    "trailing comma": b'{"a":1,}',
    "single quotes": b"{'a':1}",
    "comment": b"{}//x",
    "byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'{"a":"\\udc00x"}',
    "lone surrogate in a key": b'{"\\ud800":1}',
    "swapped pair": b'{"a":"\\udc00\\ud800"}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":[-Infinity]}',
    "past float64": b'{"a":1e999}',
    "duplicate key": b'{"a":1,"a":1}',
    "deep duplicate key": b'{"a":[{"b":{"c":1,"c":2}}]}',
    "duplicate key by escape": b'{"a":1,"\\u0061":2}',
    "control character": b'{"a":"\x01"}',
    "deep": b"[" * 300 + b"]" * 300,
    "very deep": b"[" * 200_000 + b"]" * 200_000,
    "very deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "huge integer": b'{"a":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", [pytest.param(b, id=name) for name, b in UNREADABLE.items()])
def test_what_parsers_could_disagree_about_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        canonical.parse(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a":"\\u0000"}', {"a": "\x00"}),
        (b"[" * 200 + b"]" * 200, None),
        (b"[" + b"[]," * 300 + b"[]]", None),  # wide is not deep
        (b"-0.0", -0.0),
        (b" null ", None),
        (b'{"\\\\ud800":1}', {"\\ud800": 1}),
    ],
)
def test_what_is_json_is_read(body: bytes, value: object) -> None:
    parsed = canonical.parse(body)
    assert value is None or parsed == value


def test_keys_are_sorted_at_every_depth_and_arrays_are_not() -> None:
    value = canonical.parse(b'{"b":[{"z":1,"y":null},2,1],"a":{"d":1,"c":"\xc3\xa9"}}')
    assert canonical.encode(value) == '{"a":{"c":"é","d":1},"b":[{"y":null,"z":1},2,1]}'.encode()


def test_numbers_that_an_upstream_may_tell_apart_stay_apart() -> None:
    assert len({canonical.encode(v) for v in (1, 1.0, True, "1", [1])}) == 5
    assert canonical.encode(2**63 + 1) != canonical.encode(2**63)
