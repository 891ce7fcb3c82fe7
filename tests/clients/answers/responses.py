"""The Responses API, as OpenAI answers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.clients.answers.asked import ARGUMENTS, frame, words

if TYPE_CHECKING:
    from tests.clients.answers.asked import Asked

USAGE = {
    "input_tokens": 19,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 10,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 29,
}


def plain(asked: Asked) -> dict[str, Any]:
    """A completed response."""
    return {**_shape(asked, "completed"), "output": [_item(asked)], "usage": USAGE}


def frames(asked: Asked) -> list[bytes]:
    """The events of a response."""
    started = _shape(asked, "in_progress")
    item = _item(asked)
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": _begun(item)},
        *(_call_events(item) if asked.tool else _text_events(item)),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": plain(asked)},
    ]
    return [
        frame({"sequence_number": number, **event}, event["type"])
        for number, event in enumerate(events)
    ]


def fault() -> bytes:
    """The event that ends a stream which failed."""
    event = {"type": "error", "code": "server_error", "message": "The fake fails: é", "param": None}
    return frame({**event, "sequence_number": 5}, "error")


def _shape(asked: Asked, status: str) -> dict[str, Any]:
    body = asked.body
    return {
        "id": f"resp_{asked.token}",
        "object": "response",
        "created_at": asked.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": body.get("store", True),
        "temperature": 1.0,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "metadata": {},
    }


def _item(asked: Asked) -> dict[str, Any]:
    if asked.tool:
        return {
            "type": "function_call",
            "id": f"fc_{asked.token}",
            "call_id": f"call_{asked.token}",
            "name": asked.tool,
            "arguments": ARGUMENTS,
            "status": "completed",
        }
    part = {"type": "output_text", "text": asked.text(), "annotations": [], "logprobs": []}
    message = {"type": "message", "id": f"msg_{asked.token}", "role": "assistant"}
    return {**message, "status": "completed", "content": [part]}


def _begun(item: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = (
        {"arguments": ""} if item["type"] == "function_call" else {"content": []}
    )
    return {**item, "status": "in_progress", **empty}


def _text_events(item: dict[str, Any]) -> list[dict[str, Any]]:
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = item["content"][0]
    text = "response.output_text"
    return [
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *(
            {"type": f"{text}.delta", **at, "delta": word, "logprobs": []}
            for word in words(part["text"])
        ),
        {"type": f"{text}.done", **at, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
    ]


def _call_events(item: dict[str, Any]) -> list[dict[str, Any]]:
    at = {"item_id": item["id"], "output_index": 0}
    call = "response.function_call_arguments"
    return [
        *({"type": f"{call}.delta", **at, "delta": part} for part in words(ARGUMENTS)),
        {"type": f"{call}.done", **at, "arguments": ARGUMENTS, "name": item["name"]},
    ]
