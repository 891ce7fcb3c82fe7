"""OpenAI chat completions: `POST /v1/chat/completions`, JSON and event stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import choices, reading, usage
from cachesvc.errors import Unreadable

if TYPE_CHECKING:
    from cachesvc.core.admission import Reading
    from cachesvc.dialects.sse import Event


class OpenAIChat:
    """The chat completions protocol."""

    name = "openai-chat"
    path = "/v1/chat/completions"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a chat completion request."""
        request = reading.request_object(body)
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Unreadable("messages is not a list with at least one message")
        turns, comparable = [], not (request.get("tools") or request.get("functions"))
        for index, message in enumerate(messages):
            turn, plain = _read_message(message, index)
            turns.append(turn)
            comparable = comparable and plain
        return Ask(
            protocol=self.name,
            body=request,
            model=reading.model_of(request),
            stream=reading.asks_stream(request),
            temperature=reading.temperature_of(request),
            turns=tuple(turns),
            comparable=comparable,
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        return choices.read_answer(media_type, body)

    def has_ended(self, last: Event) -> bool:
        """`[DONE]`, or an error."""
        return choices.has_ended(last)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`."""
        return usage.zeroed(media_type, body, choices.USAGE)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it."""
        return reading.openai_error(status, code, message)


def _read_message(message: Any, index: int) -> tuple[Turn, bool]:
    """One message, and whether there is nothing in it that only equality can judge."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Unreadable(f"messages[{index}] is not an object with a role")
    texts, plain = reading.texts_of(message.get("content"), ("messages", index, "content"))
    called = any(message.get(field) for field in ("tool_calls", "function_call", "audio"))
    # An empty name is still a name.
    named = message.get("name") is not None or message.get("tool_call_id") is not None
    plain = plain and message["role"] not in ("tool", "function") and not called and not named
    return Turn(message["role"], tuple(texts)), plain
