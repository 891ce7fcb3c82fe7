"""Embeddings, as OpenAI answers them."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.clients.answers.asked import Asked


def plain(asked: Asked) -> dict[str, Any]:
    """A vector of 8 numbers per input, as numbers or as base64 of little-endian float32."""
    given = asked.body["input"]
    inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    as_bytes = asked.body.get("encoding_format") == "base64"
    data = []
    for index, one in enumerate(inputs):
        numbers = struct.unpack("<8h", hashlib.sha256(repr(one).encode()).digest()[:16])
        vector = [number / 32768 for number in numbers]
        packed = base64.b64encode(struct.pack("<8f", *vector)).decode()
        embedding = packed if as_bytes else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}
