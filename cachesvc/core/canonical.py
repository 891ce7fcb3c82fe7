"""Strict JSON in, canonical bytes out.

Two texts that mean the same JSON value get the same bytes: keys sorted by code point at every
depth, arrays in order, no white space, `null` kept. Stricter than RFC 8259 where parsers disagree:
whatever two parsers could read differently is refused, since the upstream's parser might be the
other one.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from cachesvc.errors import Unreadable

# The standard library's parser recurses; well below its limit, and far above what APIs send.
MAX_DEPTH = 200


def parse(body: bytes) -> Any:
    """The value of one JSON text.

    Raises Unreadable for invalid UTF-8, invalid JSON, trailing data, duplicate keys at any depth,
    non-finite numbers (literals, or numbers past float64), lone surrogates, and nesting deeper
    than 200.
    """
    try:
        text = body.decode("utf-8")
        value = _DECODER.decode(text)
    except UnicodeDecodeError as exc:
        raise Unreadable("the body is not UTF-8") from exc
    except ValueError as exc:  # also an integer longer than int() reads
        raise Unreadable("the body is not JSON") from exc
    except RecursionError as exc:
        raise Unreadable("the body nests too deeply") from exc
    # What opens fewer brackets than that cannot be deeper: most bodies are not walked.
    if text.count("{") + text.count("[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise Unreadable(f"the body nests deeper than {MAX_DEPTH}")
    # Only an escape can bring a lone surrogate into decoded UTF-8.
    if "\\u" in text:
        try:
            encode(value)
        except UnicodeEncodeError as exc:
            raise Unreadable("the body holds a lone surrogate") from exc
    return value


def encode(value: Any) -> bytes:
    """Canonical bytes of a parsed JSON value.

    Integers and floats stay apart (`1` is not `1.0`): an upstream may treat them differently.
    """
    return _ENCODER.encode(value).encode("utf-8")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Unreadable("the body repeats a key")
    return made


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Unreadable("the body holds a number past float64")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise Unreadable(f"the body holds {name}, which is not JSON")


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [inner for item in level for inner in _children(item)]
        if not level:
            return False
    return True


def _children(item: Any) -> Any:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


# Made once: the module's functions make a new one for each call.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
)
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
)
