"""OpenAI Responses: `POST /v1/responses`, JSON and event stream.

Most of this protocol is about what the provider keeps: its answers have ids that later requests
refer to, and they are stored unless the request says `store: false`. An answer is cached only where
nothing refers to anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesvc.core.admission import Reading
from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import reading, usage
from cachesvc.errors import Unreadable

if TYPE_CHECKING:
    from cachesvc.dialects.sse import Event

_USAGE_IN_EVENTS = (("response", "usage"),)
_TEXTS = ("input_text", "output_text")
_REFERENCES = ("previous_response_id", "conversation", "prompt")
# Tools that the caller runs itself. All others run at the provider: what they find changes.
_CALLERS_TOOLS = ("function", "custom")
_COMPLETED = "completed"
_END = "response.completed"
_FAILED = ("response.failed", "response.incomplete", "response.cancelled", reading.ERROR)


class OpenAIResponses:
    """The Responses protocol."""

    name = "openai-responses"
    path = "/v1/responses"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a Responses request."""
        request = reading.request_object(body)
        tools = reading.tools_of(request)
        turns, comparable = _read_input(request.get("input"), required=not _refers(request))
        return Ask(
            protocol=self.name,
            body=request,
            model=reading.model_of(request),
            stream=reading.asks_stream(request),
            temperature=reading.temperature_of(request),
            turns=(*_read_instructions(request.get("instructions")), *turns),
            comparable=comparable and not tools,
            stateful=_is_stateful(request, tools),
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        kind = reading.kind_of(media_type)
        if kind == reading.STREAM:
            return _read_stream(body)
        answer = reading.answer_json(body) if kind == reading.JSON else None
        return _read_response(answer) if isinstance(answer, dict) else None

    def has_ended(self, last: Event) -> bool:
        """`response.completed`, or one of the ways to fail."""
        return reading.is_done(last) or reading.type_of(last) in (_END, *_FAILED)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`, also of the responses in events."""
        return usage.without_usage(media_type, body, _USAGE_IN_EVENTS)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it."""
        return reading.openai_error(status, code, message)


def _refers(request: dict[str, Any]) -> bool:
    """Something that the provider has is a part of the question. Raises Unreadable."""
    if not isinstance(request.get("prompt", {}), (dict, type(None))):
        raise Unreadable("prompt is not an object")
    return any(request.get(field) is not None for field in _REFERENCES)


def _is_stateful(request: dict[str, Any], tools: list[dict[str, Any]]) -> bool:
    background = request.get("background") not in (None, False)
    hosted = any(tool.get("type") not in _CALLERS_TOOLS for tool in tools)
    refers = _refers(request) or any(_is_reference(i) for i in _list(request.get("input")))
    # Absent means stored.
    return refers or background or hosted or request.get("store") is not False


def _is_reference(item: Any) -> bool:
    """An item that the provider has. Its type may be left out, its id may not."""
    if not isinstance(item, dict):
        return False
    untyped = item.get("type") is None and item.get("role") is None and "id" in item
    return untyped or item.get("type") == "item_reference"


def _read_instructions(value: Any) -> list[Turn]:
    if value is None:
        return []
    if not isinstance(value, str):
        raise Unreadable("instructions is not a string")
    return [Turn("system", (("instructions",),))]


def _read_input(value: Any, *, required: bool) -> tuple[list[Turn], bool]:
    """The messages, and whether there is nothing but messages of text. Raises Unreadable."""
    if isinstance(value, str):
        return [Turn("user", (("input",),))], True
    if value is None and not required:  # what is referred to may say it all
        return [], False
    if not isinstance(value, list) or not value:
        raise Unreadable("input is neither text nor a list with at least one item")
    turns, comparable = [], True
    for index, item in enumerate(value):
        if not _is_message(item, index):
            comparable = False
            continue
        role = reading.role_of(item, ("input", index))
        texts, plain = reading.texts_of(item.get("content"), ("input", index, "content"), _TEXTS)
        turns.append(Turn(role, tuple(texts)))
        comparable = comparable and plain and reading.is_plain(item)
    return turns, comparable


def _is_message(item: Any, index: int) -> bool:
    """An item without a type is a message, if it has a role. Raises Unreadable for no item."""
    kind = item.get("type") if isinstance(item, dict) else 0
    if kind is None:
        return not _is_reference(item)
    if not isinstance(kind, str):
        raise Unreadable(f"input[{index}] is not an object with a type or a role")
    return kind == "message"


def _read_stream(body: bytes) -> Reading | None:
    events = reading.typed_events(body)
    kinds = [event["type"] for event in events or ()]
    # The end is the last, and there is no other.
    if not events or kinds[-1] != _END or kinds.count(_END) != 1:
        return None
    response = events[-1].get("response", {})
    if any(kind in _FAILED for kind in kinds) or not isinstance(response, dict):
        return None
    refused = any(kind.startswith("response.refusal") for kind in kinds)
    # The response need not say again what the event's type says.
    return _read_response({"status": _COMPLETED, "output": [], **response}, refused=refused)


def _read_response(value: dict[str, Any], *, refused: bool = False) -> Reading | None:
    """One response, None unless it is completed: cut short, failed or running is no answer."""
    output, used = value.get("output"), value.get("usage")
    if reading.is_failure(value) or value.get("status") != _COMPLETED:
        return None
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
        return None
    parts = [part for item in output for part in _list(item.get("content"))]
    counts = used if isinstance(used, dict) else {}
    return Reading(
        finish_reasons=(_COMPLETED,),
        refused=refused or any(isinstance(p, dict) and p.get("type") == "refusal" for p in parts),
        prompt_tokens=reading.tokens(counts.get("input_tokens")),
        completion_tokens=reading.tokens(counts.get("output_tokens")),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
