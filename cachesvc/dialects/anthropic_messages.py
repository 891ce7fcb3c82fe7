"""Anthropic Messages: `POST /v1/messages`, JSON and event stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cachesvc.core.admission import Reading
from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import reading, usage

if TYPE_CHECKING:
    from cachesvc.dialects.sse import Event

_USAGE_IN_EVENTS = (("usage",), ("message", "usage"))
_STOP = "message_stop"
# Tools that Anthropic describes and the caller runs, as it runs its own. Whatever else has a type
# (web search, code execution, …) runs at the provider.
_CALLERS_TOOLS = ("bash_", "text_editor_", "computer_", "memory_")
# The model has not finished its turn: the caller is to send all of it back.
_UNFINISHED = ("pause_turn", "compaction")
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class AnthropicMessages:
    """The Messages protocol."""

    name = "anthropic-messages"
    path = "/v1/messages"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a Messages request."""
        request = reading.request_object(body)
        tools, servers = reading.tools_of(request), reading.tools_of(request, "mcp_servers")
        connects = bool(servers) or request.get("container") is not None
        turns, comparable = [], not tools and not connects
        if request.get("system") is not None:
            texts, plain = reading.texts_of(request["system"], ("system",))
            turns.append(Turn("system", tuple(texts)))
            comparable = comparable and plain
        for index, message in enumerate(reading.messages_of(request)):
            role = reading.role_of(message, ("messages", index))
            texts, plain = reading.texts_of(message.get("content"), ("messages", index, "content"))
            turns.append(Turn(role, tuple(texts)))
            comparable = comparable and plain and reading.is_plain(message)
        return Ask(
            protocol=self.name,
            body=request,
            model=reading.model_of(request),
            stream=reading.asks_stream(request),
            temperature=reading.temperature_of(request),
            turns=tuple(turns),
            comparable=comparable,
            # What the provider looks up, runs or calls for this answer is a world that changes,
            # or a container that outlives the request: the answer is no function of the request.
            stateful=connects or any(_is_hosted(tool) for tool in tools),
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        kind = reading.kind_of(media_type)
        if kind == reading.STREAM:
            return _read_stream(body)
        answer = reading.answer_json(body) if kind == reading.JSON else None
        if not isinstance(answer, dict) or reading.is_failure(answer):
            return None
        if answer.get("type", "message") != "message" or not _is_content(answer.get("content")):
            return None
        return _reading([answer.get("stop_reason")], [answer.get("usage")])

    def has_ended(self, last: Event) -> bool:
        """`message_stop`, or an error."""
        return reading.is_done(last) or reading.type_of(last) in (_STOP, reading.ERROR)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`, also of those in events."""
        return usage.without_usage(media_type, body, _USAGE_IN_EVENTS)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it; it has no place for `code`."""
        kind = "invalid_request_error" if status < 500 else "api_error"
        error = {"type": _ERROR_TYPES.get(status, kind), "message": message}
        return json.dumps({"type": "error", "error": error}).encode("utf-8")


def _is_hosted(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    callers = isinstance(kind, str) and kind.startswith(_CALLERS_TOOLS)
    return kind not in (None, "custom") and not callers


def _read_stream(body: bytes) -> Reading | None:
    events = reading.typed_events(body)
    kinds = [event["type"] for event in events or ()]
    if not events or reading.ERROR in kinds:
        return None
    # The end is the last, there is no other, and something came before it.
    if kinds[-1] != _STOP or kinds.count(_STOP) != 1 or kinds[0] == _STOP:
        return None
    parts = [_dict(event.get("message")) for event in events]
    parts += [_dict(event.get("delta")) for event in events]
    usages = [part.get("usage") for part in (*parts, *events)]
    return _reading([part.get("stop_reason") for part in parts], usages)


def _reading(stop_reasons: list[Any], usages: list[Any]) -> Reading | None:
    """Of each count the last: later ones are of all so far. None for an unfinished turn."""
    reasons = tuple(reason for reason in stop_reasons if isinstance(reason, str))
    if any(reason in _UNFINISHED for reason in reasons):
        return None
    counts: dict[str, Any] = {}
    for used in map(_dict, usages):
        counts.update({name: count for name, count in used.items() if count is not None})
    return Reading(
        finish_reasons=reasons,
        prompt_tokens=reading.tokens(*(counts.get(name) for name in _INPUT)),
        completion_tokens=reading.tokens(counts.get("output_tokens")),
    )


def _is_content(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(block, dict) for block in value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
