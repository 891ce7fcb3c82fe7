"""OpenAI chat completions: `POST /v1/chat/completions`, JSON and event stream."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from cachesvc.core import canonical
from cachesvc.core.admission import Reading
from cachesvc.core.ask import Ask, Path, Turn
from cachesvc.dialects import sse
from cachesvc.errors import Unreadable

_DONE = b"[DONE]"
_MAX_TOKENS = 2**32 - 1


class OpenAIChat:
    """The chat completions protocol."""

    name = "openai-chat"
    path = "/v1/chat/completions"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a chat completion request."""
        value = canonical.parse(body)
        if not isinstance(value, dict):
            raise Unreadable("the body is not an object")
        messages, model = value.get("messages"), value.get("model", "")
        if not isinstance(messages, list) or not messages:
            raise Unreadable("messages is not a list with at least one message")
        if not isinstance(model, str):
            raise Unreadable("model is not a string")
        turns, comparable = [], not (value.get("tools") or value.get("functions"))
        for index, message in enumerate(messages):
            turn, plain = _read_message(message, index)
            turns.append(turn)
            comparable = comparable and plain
        return Ask(
            protocol=self.name,
            body=value,
            model=model,
            stream=_read_stream(value.get("stream")),
            temperature=_number(value.get("temperature")),
            turns=tuple(turns),
            comparable=comparable,
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        kind = media_type.partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            return _read_stream_answer(body)
        if kind == "application/json" or kind.endswith("+json"):
            answer = _json(body)
            return _reading([answer]) if _is_answer(answer) else None
        return None

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        return json.dumps({"error": error}).encode("utf-8")


def _read_message(message: Any, index: int) -> tuple[Turn, bool]:
    """One message, and whether there is nothing in it that only equality can judge."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Unreadable(f"messages[{index}] is not an object with a role")
    content, at = message.get("content"), ("messages", index, "content")
    texts: list[Path] = []
    plain = message["role"] not in ("tool", "function") and not any(
        message.get(field) for field in ("tool_calls", "function_call", "audio")
    )
    # An empty name is still a name.
    plain = plain and message.get("name") is None and message.get("tool_call_id") is None
    if isinstance(content, str):
        texts.append(at)
    elif isinstance(content, list):
        for place, block in enumerate(content):
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                raise Unreadable(f"messages[{index}].content[{place}] is not a content part")
            if block["type"] == "text" and isinstance(block.get("text"), str):
                texts.append((*at, place, "text"))
            else:
                plain = False
    elif content is not None:
        raise Unreadable(f"messages[{index}].content is neither text nor a list")
    return Turn(message["role"], tuple(texts)), plain


def _read_stream(value: Any) -> bool:
    if value is True:
        return True
    if value is None or value is False or (type(value) is int and value == 0):
        return False
    raise Unreadable("stream is not a boolean")


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None


def _read_stream_answer(body: bytes) -> Reading | None:
    events = sse.split(body)
    if not events or events[-1].data.strip() != _DONE:
        return None
    if any(event.name == "error" for event in events):
        return None
    chunks = [_json(event.data) for event in events if event.data.strip() != _DONE]
    whole = all(_is_part(chunk) for chunk in chunks)
    return _reading(chunks) if whole and any(chunk["choices"] for chunk in chunks) else None


def _is_answer(value: Any) -> bool:
    """A part of an answer that holds one."""
    return _is_part(value) and bool(value["choices"])


def _is_part(value: Any) -> bool:
    """Has a list of choices and no error: a gateway may word an error as a 200, or as a chunk."""
    return (
        isinstance(value, dict)
        and not value.get("error")
        and isinstance(value.get("choices"), list)
        and all(isinstance(c, dict) and not c.get("error") for c in value["choices"])
    )


def _reading(parts: list[Any]) -> Reading:
    """What one answer, or all chunks of a streamed one, say together."""
    choices = [c for part in parts for c in part.get("choices") or () if isinstance(c, dict)]
    messages = [m for c in choices for m in (c.get("message"), c.get("delta"))]
    usages = [part["usage"] for part in parts if isinstance(part.get("usage"), dict)]
    usage = usages[-1] if usages else {}
    reasons = [choice.get("finish_reason") for choice in choices]
    return Reading(
        finish_reasons=tuple(reason for reason in reasons if isinstance(reason, str)),
        refused=any(isinstance(m, dict) and bool(m.get("refusal")) for m in messages),
        prompt_tokens=_tokens(usage.get("prompt_tokens")),
        completion_tokens=_tokens(usage.get("completion_tokens")),
    )


def _tokens(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else 0


def _json(text: bytes) -> Any:
    """The JSON value, or None. More lenient than requests: a lone surrogate is an answer, too."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
