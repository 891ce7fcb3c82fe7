"""Anthropic Messages: `POST /v1/messages`, JSON and event stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cachesvc.core.admission import Reading
from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import reading, usage
from cachesvc.errors import Unreadable

if TYPE_CHECKING:
    from cachesvc.dialects.sse import Event

_USAGE = (("usage",), ("message", "usage"))
_STOP = "message_stop"
# Tools that run at Anthropic: what they find is no function of the request.
_HOSTED = ("web_search", "web_fetch", "code_execution", "mcp_toolset", "tool_search")
_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class AnthropicMessages:
    """The Messages protocol."""

    name = "anthropic-messages"
    path = "/v1/messages"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a Messages request."""
        request = reading.request_object(body)
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Unreadable("messages is not a list with at least one message")
        tools = reading.tools_of(request)
        turns, comparable = [], not tools and not _connects(request)
        if request.get("system") is not None:
            texts, plain = reading.texts_of(request["system"], ("system",))
            turns.append(Turn("system", tuple(texts)))
            comparable = comparable and plain
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise Unreadable(f"messages[{index}] is not an object with a role")
            texts, plain = reading.texts_of(message.get("content"), ("messages", index, "content"))
            turns.append(Turn(message["role"], tuple(texts)))
            comparable = comparable and plain
        return Ask(
            protocol=self.name,
            body=request,
            model=reading.model_of(request),
            stream=reading.asks_stream(request),
            temperature=reading.temperature_of(request),
            turns=tuple(turns),
            comparable=comparable,
            stateful=_connects(request) or any(_is_hosted(tool) for tool in tools),
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        kind = reading.kind_of(media_type)
        if kind == reading.STREAM:
            return _read_stream(body)
        answer = reading.answer_json(body) if kind == reading.JSON else None
        if not isinstance(answer, dict) or answer.get("error") or answer.get("type") != "message":
            return None
        if not isinstance(answer.get("content"), list):
            return None
        return _reading(answer.get("stop_reason"), [_dict(answer.get("usage"))])

    def has_ended(self, last: Event) -> bool:
        """`message_stop`, or an error."""
        done = last.data.strip() == b"[DONE]"
        return done or reading.type_of(last) == _STOP or reading.is_error(last)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`, also of those in events."""
        return usage.zeroed(media_type, body, _USAGE)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it; it has no place for `code`."""
        kinds = {400: "invalid_request_error", 504: "timeout_error"}
        error = {"type": kinds.get(status, "api_error"), "message": message}
        return json.dumps({"type": "error", "error": error}).encode("utf-8")


def _connects(request: dict[str, Any]) -> bool:
    """The provider calls servers, or works in a container that outlives the request."""
    return bool(request.get("mcp_servers")) or request.get("container") is not None


def _is_hosted(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and kind.startswith(_HOSTED)


def _read_stream(body: bytes) -> Reading | None:
    events = reading.typed_events(body)
    if not events or events[-1]["type"] != _STOP or events[0]["type"] == _STOP:
        return None
    if any(event["type"] == "error" or event.get("error") for event in events):
        return None
    starts = [event for event in events if event["type"] == "message_start"]
    deltas = [event for event in events if event["type"] == "message_delta"]
    if len(starts) != 1:
        return None
    reasons = [_dict(event.get("delta")).get("stop_reason") for event in deltas]
    usages = [_dict(_dict(starts[0].get("message")).get("usage"))]
    usages += [_dict(event.get("usage")) for event in deltas]
    return _reading(reasons[-1] if reasons else None, usages)


def _reading(reason: Any, usages: list[dict[str, Any]]) -> Reading:
    """What came under which counts; later counts are of all so far, and replace earlier ones."""
    counts: dict[str, Any] = {}
    for used in usages:
        counts.update({name: count for name, count in used.items() if count is not None})
    return Reading(
        finish_reasons=(reason,) if isinstance(reason, str) else (),
        # A turn that was paused is to be continued: half an answer.
        refused=reason == "pause_turn",
        prompt_tokens=reading.tokens(*(counts.get(name) for name in _INPUT)),
        completion_tokens=reading.tokens(counts.get("output_tokens")),
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
