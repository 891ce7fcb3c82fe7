"""Answers in choices, as chat completions and completions give them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesvc.core.admission import Reading
from cachesvc.dialects import reading, sse, usage

if TYPE_CHECKING:
    from cachesvc.dialects.sse import Event


class Choices:
    """The answering half of both protocols, and how OpenAI words an error."""

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        kind = reading.kind_of(media_type)
        if kind == reading.STREAM:
            return _read_stream(body)
        answer: Any = reading.answer_json(body) if kind == reading.JSON else None
        return _reading([answer]) if _is_part(answer) and answer["choices"] else None

    def has_ended(self, last: Event) -> bool:
        """`[DONE]`, or an error."""
        return reading.is_done(last) or reading.is_error(last)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`."""
        return usage.without_usage(media_type, body)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it."""
        return reading.openai_error(status, code, message)


def _read_stream(body: bytes) -> Reading | None:
    events = sse.split(body)
    if not events or not reading.is_done(events[-1]):
        return None
    if any(event.name == reading.ERROR for event in events):
        return None
    chunks = [reading.answer_json(event.data) for event in events if not reading.is_done(event)]
    whole = all(_is_part(chunk) for chunk in chunks)
    return _reading(chunks) if whole and any(chunk["choices"] for chunk in chunks) else None


def _is_part(value: Any) -> bool:
    """Has a list of choices and no error: a gateway may word an error as a 200, or as a chunk."""
    return (
        isinstance(value, dict)
        and not reading.is_failure(value)
        and isinstance(value.get("choices"), list)
        and all(isinstance(c, dict) and not c.get("error") for c in value["choices"])
    )


def _reading(parts: list[Any]) -> Reading:
    """What one answer, or all chunks of a streamed one, say together."""
    choices = [choice for part in parts for choice in part["choices"]]
    messages = [m for c in choices for m in (c.get("message"), c.get("delta"))]
    usages = [part["usage"] for part in parts if isinstance(part.get("usage"), dict)]
    used = usages[-1] if usages else {}
    reasons = [choice.get("finish_reason") for choice in choices]
    return Reading(
        finish_reasons=tuple(reason for reason in reasons if isinstance(reason, str)),
        refused=any(isinstance(m, dict) and bool(m.get("refusal")) for m in messages),
        prompt_tokens=reading.tokens(used.get("prompt_tokens")),
        completion_tokens=reading.tokens(used.get("completion_tokens")),
    )
