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

_USAGE = (("usage",), ("response", "usage"))
_TEXTS = ("input_text", "output_text")
# Tools that the caller runs itself. All others run at the provider: what they find changes.
_CALLERS_TOOLS = ("function", "custom")
_COMPLETED = "response.completed"
_FAILED = ("response.failed", "response.incomplete", "error")


class OpenAIResponses:
    """The Responses protocol."""

    name = "openai-responses"
    path = "/v1/responses"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a Responses request."""
        request = reading.request_object(body)
        tools = reading.tools_of(request)
        turns, comparable = _read_input(request.get("input"))
        said = request.get("instructions")
        if isinstance(said, str):
            turns.insert(0, Turn("system", (("instructions",),)))
        return Ask(
            protocol=self.name,
            body=request,
            model=reading.model_of(request),
            stream=reading.asks_stream(request),
            temperature=reading.temperature_of(request),
            turns=tuple(turns),
            comparable=comparable and not tools and (said is None or isinstance(said, str)),
            stateful=_is_stateful(request, tools),
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        kind = reading.kind_of(media_type)
        if kind == reading.STREAM:
            return _read_stream(body)
        return _read_response(reading.answer_json(body)) if kind == reading.JSON else None

    def has_ended(self, last: Event) -> bool:
        """`response.completed`, or one of the ways to fail."""
        ends = (_COMPLETED, *_FAILED)
        done = last.data.strip() == b"[DONE]"
        return done or reading.type_of(last) in ends or reading.is_error(last)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`, also of the responses in events."""
        return usage.zeroed(media_type, body, _USAGE)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it."""
        return reading.openai_error(status, code, message)


def _is_stateful(request: dict[str, Any], tools: list[dict[str, Any]]) -> bool:
    kept = any(
        request.get(field) is not None
        for field in ("previous_response_id", "conversation", "prompt")
    )
    background = request.get("background") not in (None, False)
    hosted = any(tool.get("type") not in _CALLERS_TOOLS for tool in tools)
    items = request.get("input")
    refers = isinstance(items, list) and any(i.get("type") == "item_reference" for i in items)
    # Absent means stored.
    return kept or background or hosted or refers or request.get("store") is not False


def _read_input(value: Any) -> tuple[list[Turn], bool]:
    """The messages, and whether there is nothing but messages of text. Raises Unreadable."""
    if isinstance(value, str):
        return [Turn("user", (("input",),))], True
    if value is None:  # a stored prompt may bring its own
        return [], False
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Unreadable("input is neither text nor a list of items")
    turns, comparable = [], True
    for index, item in enumerate(value):
        role = item.get("role")
        if item.get("type", "message") != "message" or not isinstance(role, str):
            comparable = False
            continue
        texts, plain = reading.texts_of(item.get("content"), ("input", index, "content"), _TEXTS)
        turns.append(Turn(role, tuple(texts)))
        comparable = comparable and plain
    return turns, comparable


def _read_stream(body: bytes) -> Reading | None:
    events = reading.typed_events(body)
    if not events or events[-1]["type"] != _COMPLETED:
        return None
    if any(event["type"] in _FAILED or event.get("error") for event in events):
        return None
    return _read_response(events[-1].get("response"))


def _read_response(value: Any) -> Reading | None:
    """One response. Its status stands for the finish reason: "completed", "incomplete", …"""
    if not isinstance(value, dict) or value.get("error"):
        return None
    output, status, used = value.get("output"), value.get("status"), value.get("usage")
    if not isinstance(output, list) or status not in (None, "completed", "incomplete"):
        return None
    if not output or not all(isinstance(item, dict) for item in output):
        return None
    parts = [part for item in output for part in _list(item.get("content"))]
    counts = used if isinstance(used, dict) else {}
    return Reading(
        finish_reasons=() if status is None else (status,),
        refused=any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts),
        prompt_tokens=reading.tokens(counts.get("input_tokens")),
        completion_tokens=reading.tokens(counts.get("output_tokens")),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
