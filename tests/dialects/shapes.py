"""How samples of the protocols are written down: JSON, events, and what is to be read in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachesvc.core.admission import Reading
    from cachesvc.dialects.base import Dialect

JSON = "application/json"
STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Sample:
    """One protocol: a request, and the answers to it with what is to be read in each.

    `streams` are whole event streams by what they show; the first is that of `json_answer`.
    """

    dialect: Dialect
    request: dict[str, Any]
    json_answer: bytes
    json_reading: Reading
    streams: dict[str, tuple[bytes, Reading]] = field(default_factory=dict)

    @property
    def stream_answer(self) -> bytes:
        return next(iter(self.streams.values()))[0]


def pretty(value: dict[str, Any]) -> bytes:
    """JSON as OpenAI sends it: indented, with a line feed at its end."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def data(value: dict[str, Any]) -> bytes:
    """An event without a name."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def named(kind: str, **value: Any) -> bytes:
    """An event whose name and data say its type."""
    return b"event: " + kind.encode() + b"\n" + data({"type": kind, **value})
