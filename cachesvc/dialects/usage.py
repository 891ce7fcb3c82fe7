"""Setting the numbers of a stored answer's usage to 0, in place: no other byte changes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cachesvc.dialects.reading import JSON, STREAM, answer_json, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    Keys = tuple[str, ...]

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_DATA = re.compile(rb"(?:\A|(?<=[\r\n]))(data: ?)([^\r\n]+)")
_NUMBER = b"-0123456789"


def zeroed(media_type: str, body: bytes, paths: tuple[Keys, ...]) -> bytes:
    """`body` with 0 for every number under one of `paths`, which are keys from the top.

    In an event stream that is done for each `data` line that is JSON by itself. What cannot be read
    stays as it is. Takes time linear to the length.
    """
    kind = kind_of(media_type)
    if kind == JSON:
        return _zeroed_json(body, paths)
    if kind == STREAM:
        return _DATA.sub(lambda line: line[1] + _zeroed_json(line[2], paths), body)
    return body


def _zeroed_json(text: bytes, paths: tuple[Keys, ...]) -> bytes:
    # A key may be written with escapes; without them it must be there as it is.
    if b"usage" not in text and b"\\u" not in text:
        return text
    if not isinstance(answer_json(text), dict):
        return text
    pieces, at = [], 0
    for start, end in _numbers(text, paths):
        pieces += [text[at:start], b"0"]
        at = end
    return b"".join([*pieces, text[at:]])


def _numbers(text: bytes, paths: tuple[Keys, ...]) -> Iterator[tuple[int, int]]:
    """Where the numbers under `paths` stand. `text` is JSON."""
    open_keys: list[str | None] = []  # per open container the key we are at; None in a list
    is_key: list[bool] = []  # per open container whether a key comes next
    under = 0  # how many open containers lie under one of the paths
    for token in _TOKEN.finditer(text):
        said = token[0]
        if said in (b"{", b"["):
            under += bool(under) or _is_one_of(open_keys, paths)
            open_keys.append(None)
            is_key.append(said == b"{")
        elif said in (b"}", b"]"):
            open_keys.pop()
            is_key.pop()
            under = max(0, under - 1)
        elif said == b",":
            is_key[-1] = open_keys[-1] is not None
        elif said[0] == ord('"') and is_key and is_key[-1]:
            key = answer_json(said)
            open_keys[-1] = key if isinstance(key, str) else ""
            is_key[-1] = False
        elif said[0] in _NUMBER and (under or _is_one_of(open_keys, paths)):
            yield token.span()


def _is_one_of(open_keys: list[str | None], paths: tuple[Keys, ...]) -> bool:
    return len(open_keys) <= 2 and tuple(open_keys) in paths
