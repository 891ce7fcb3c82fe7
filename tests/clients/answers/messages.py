"""Messages, as Anthropic answers them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.clients.answers.asked import ARGUMENTS, frame, words

if TYPE_CHECKING:
    from tests.clients.answers.asked import Asked

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    429: "rate_limit_error",
    500: "api_error",
}


def plain(asked: Asked) -> dict[str, Any]:
    """A message."""
    return {
        **_shape(asked),
        "content": [_block(asked)],
        "stop_reason": "tool_use" if asked.tool else "end_turn",
        "usage": {"input_tokens": 19, "output_tokens": 10},
    }


def frames(asked: Asked) -> list[bytes]:
    """The events of a message."""
    stop = "tool_use" if asked.tool else "end_turn"
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": _shape(asked)},
        {"type": "content_block_start", "index": 0, "content_block": _begun(asked)},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": d} for d in _deltas(asked)),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None},
            "usage": {"input_tokens": 19, "output_tokens": 10},
        },
        {"type": "message_stop"},
    ]
    return [frame(event, event["type"]) for event in events]


def error(status: int) -> dict[str, Any]:
    """An error body."""
    told = {"type": _KINDS[status], "message": f"The fake refuses with {status}: é"}
    return {"type": "error", "error": told, "request_id": "req_fake"}


def fault() -> bytes:
    """The event that ends a stream which failed."""
    told = {"type": "overloaded_error", "message": "The fake fails: é"}
    return frame({"type": "error", "error": told}, "error")


def _shape(asked: Asked) -> dict[str, Any]:
    return {
        "id": f"msg_{asked.token}",
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 19, "output_tokens": 1},
    }


def _block(asked: Asked) -> dict[str, Any]:
    if asked.tool:
        return {**_begun(asked), "input": json.loads(ARGUMENTS)}
    return {"type": "text", "text": asked.text()}


def _begun(asked: Asked) -> dict[str, Any]:
    if asked.tool:
        return {"type": "tool_use", "id": f"toolu_{asked.token}", "name": asked.tool, "input": {}}
    return {"type": "text", "text": ""}


def _deltas(asked: Asked) -> list[dict[str, Any]]:
    if asked.tool:
        return [{"type": "input_json_delta", "partial_json": part} for part in words(ARGUMENTS)]
    return [{"type": "text_delta", "text": word} for word in words(asked.text())]
