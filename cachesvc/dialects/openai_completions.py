"""OpenAI completions, the older text protocol: `POST /v1/completions`, JSON and event stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import choices, reading, usage
from cachesvc.errors import Unreadable

if TYPE_CHECKING:
    from cachesvc.core.admission import Reading
    from cachesvc.dialects.sse import Event


class OpenAICompletions:
    """The completions protocol. One prompt is one message of a user."""

    name = "openai-completions"
    path = "/v1/completions"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not a completion request."""
        request = reading.request_object(body)
        turn = _read_prompt(request.get("prompt"))
        return Ask(
            protocol=self.name,
            body=request,
            model=reading.model_of(request),
            stream=reading.asks_stream(request),
            temperature=reading.temperature_of(request),
            turns=() if turn is None else (turn,),
            # `echo` puts the prompt itself into the answer: it fits no other prompt.
            comparable=turn is not None and not request.get("echo"),
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, JSON or event stream by its media type; None when it is not whole."""
        return choices.read_answer(media_type, body)

    def has_ended(self, last: Event) -> bool:
        """`[DONE]`, or an error."""
        return choices.has_ended(last)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`."""
        return usage.without_usage(media_type, body)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it."""
        return reading.openai_error(status, code, message)


def _read_prompt(prompt: Any) -> Turn | None:
    """The one prompt that is text; None for several, and for tokens. Raises Unreadable."""
    if isinstance(prompt, str):
        return Turn("user", (("prompt",),))
    if not reading.is_text_or_tokens(prompt):
        raise Unreadable("prompt is neither text nor tokens, nor a list of one of them")
    alone = len(prompt) == 1 and isinstance(prompt[0], str)
    return Turn("user", (("prompt", 0),)) if alone else None
