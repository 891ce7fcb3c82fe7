"""OpenAI completions, the older text protocol: `POST /v1/completions`, JSON and event stream."""

from __future__ import annotations

from typing import Any

from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import reading
from cachesvc.dialects.choices import Choices
from cachesvc.errors import Unreadable


class OpenAICompletions(Choices):
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


def _read_prompt(prompt: Any) -> Turn | None:
    """The one prompt that is text; None for several, and for tokens. Raises Unreadable."""
    if isinstance(prompt, str):
        return Turn("user", (("prompt",),))
    if not reading.is_text_or_tokens(prompt):
        raise Unreadable("prompt is neither text nor tokens, nor a list of one of them")
    alone = len(prompt) == 1 and isinstance(prompt[0], str)
    return Turn("user", (("prompt", 0),)) if alone else None
