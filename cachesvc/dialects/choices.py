"""Answers in choices, as chat completions and completions give them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesvc.core.admission import Reading
from cachesvc.dialects import sse
from cachesvc.dialects.reading import JSON, STREAM, answer_json, is_error, kind_of, tokens

if TYPE_CHECKING:
    from cachesvc.dialects.sse import Event

DONE = b"[DONE]"
USAGE = (("usage",),)


def read_answer(media_type: str, body: bytes) -> Reading | None:
    """A whole answer, JSON or event stream by its media type; None when it is not whole."""
    kind = kind_of(media_type)
    if kind == STREAM:
        return _read_stream(body)
    answer: Any = answer_json(body) if kind == JSON else None
    return _reading([answer]) if _is_part(answer) and answer["choices"] else None


def has_ended(last: Event) -> bool:
    """`[DONE]`, or an error."""
    return last.data.strip() == DONE or is_error(last)


def _read_stream(body: bytes) -> Reading | None:
    events = sse.split(body)
    if not events or events[-1].data.strip() != DONE:
        return None
    if any(event.name == "error" for event in events):
        return None
    chunks = [answer_json(event.data) for event in events if event.data.strip() != DONE]
    whole = all(_is_part(chunk) for chunk in chunks)
    return _reading(chunks) if whole and any(chunk["choices"] for chunk in chunks) else None


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
    choices = [choice for part in parts for choice in part["choices"]]
    messages = [m for c in choices for m in (c.get("message"), c.get("delta"))]
    usages = [part["usage"] for part in parts if isinstance(part.get("usage"), dict)]
    usage = usages[-1] if usages else {}
    reasons = [choice.get("finish_reason") for choice in choices]
    return Reading(
        finish_reasons=tuple(reason for reason in reasons if isinstance(reason, str)),
        refused=any(isinstance(m, dict) and bool(m.get("refusal")) for m in messages),
        prompt_tokens=tokens(usage.get("prompt_tokens")),
        completion_tokens=tokens(usage.get("completion_tokens")),
    )
