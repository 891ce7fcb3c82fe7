"""OpenAI chat completions: `POST /v1/chat/completions`, JSON and event stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import reading
from cachesvc.dialects.choices import Choices

if TYPE_CHECKING:
    from cachesvc.core.ask import Path


class OpenAIChat(Choices):
    """The chat completions protocol."""

    name = "openai-chat"
    path = "/v1/chat/completions"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a chat completion request."""
        request = reading.request_object(body)
        turns, comparable = [], not (request.get("tools") or request.get("functions"))
        for index, message in enumerate(reading.messages_of(request)):
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


def _read_message(message: Any, index: int) -> tuple[Turn, bool]:
    """One message, and whether there is nothing in it that only equality can judge."""
    at: Path = ("messages", index)
    role, content = reading.role_of(message, at), message.get("content")
    # A message that calls tools has no content.
    texts, plain = ([], True) if content is None else reading.texts_of(content, (*at, "content"))
    return Turn(role, tuple(texts)), plain and reading.is_plain(message)
