"""How long the lists of a large body are, told before anything is made of them.

Four million numbers in 16 MiB take half a second to become Python's, and nobody else is answered
meanwhile: the decoder holds the interpreter, so no thread would help.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cachesvc.core.vectors import MAX_DIMENSIONS, check_dimensions
from cachesvc.errors import Invalid

LARGE = 64 * 1024  # bytes; the lists of a smaller body are decoded within a millisecond
_MAX_TAGS_BYTES = 64 * 1024  # 16 tags of 128 characters, each written as two escapes, and then some
_ARRAY_16, _ARRAY_32 = 0xDC, 0xDD


class _Lists(Struct):
    """The fields that are lists, as they were sent: passed over, not decoded."""

    embedding: Raw | UnsetType = UNSET
    tags: Raw | UnsetType = UNSET


_JSON = msgspec.json.Decoder(_Lists)
_MESSAGEPACK = msgspec.msgpack.Decoder(_Lists)


def check_lengths(body: bytes, *, messagepack: bool) -> None:
    """Raises Invalid for a list that is too long, and what msgspec raises for no such body."""
    lists = (_MESSAGEPACK if messagepack else _JSON).decode(body)
    if not isinstance(lists.embedding, UnsetType):
        sent = bytes(lists.embedding)
        length = _length_in_messagepack(sent) if messagepack else _length_in_json(sent)
        if length > MAX_DIMENSIONS:
            check_dimensions(length)
    if not isinstance(lists.tags, UnsetType) and len(bytes(lists.tags)) > _MAX_TAGS_BYTES:
        raise Invalid("tags: must be 0 to 16 tags of 1 to 128 characters")


def _length_in_json(sent: bytes) -> int:
    """0 for what is no list."""
    return sent.count(b",") + 1 if sent.startswith(b"[") else 0


def _length_in_messagepack(sent: bytes) -> int:
    """0 for what is no list, or a short one."""
    size = {_ARRAY_16: 2, _ARRAY_32: 4}.get(sent[0], 0)
    return int.from_bytes(sent[1 : 1 + size], "big")
