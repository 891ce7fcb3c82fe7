"""OpenAI embeddings: `POST /v1/embeddings`, JSON. Vectors are for the exact tier alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.core.admission import Reading
from cachesvc.core.ask import Ask
from cachesvc.dialects import reading, usage
from cachesvc.errors import Unreadable

if TYPE_CHECKING:
    from cachesvc.dialects.sse import Event


class OpenAIEmbeddings:
    """The embeddings protocol."""

    name = "openai-embeddings"
    path = "/v1/embeddings"

    def read(self, body: bytes) -> Ask:
        """The request. Raises Unreadable for what is not an embeddings request."""
        request = reading.request_object(body)
        asked = request.get("input")
        if not isinstance(asked, str) and not reading.is_text_or_tokens(asked):
            raise Unreadable("input is neither text nor tokens, nor a list of one of them")
        return Ask(
            protocol=self.name,
            body=request,
            model=reading.model_of(request),
            stream=reading.asks_stream(request),
            temperature=None,
            turns=(),
            comparable=False,
        )

    def read_answer(self, media_type: str, body: bytes) -> Reading | None:
        """A whole answer, which is JSON; None when it is not whole."""
        answer = None
        if reading.kind_of(media_type) == reading.JSON:
            answer = reading.answer_json(body)
        if not isinstance(answer, dict) or reading.is_failure(answer):
            return None
        vectors = answer.get("data")
        if not isinstance(vectors, list) or not vectors:
            return None
        found = [one.get("embedding") if isinstance(one, dict) else None for one in vectors]
        if not all(isinstance(vector, (list, str)) and vector for vector in found):
            return None
        used = answer.get("usage")
        count = used.get("prompt_tokens") if isinstance(used, dict) else None
        return Reading(prompt_tokens=reading.tokens(count))

    def has_ended(self, last: Event) -> bool:
        """There are no streams of vectors; what a gateway might send ends as its other streams."""
        return reading.is_done(last) or reading.is_error(last)

    def without_usage(self, media_type: str, body: bytes) -> bytes:
        """The answer with 0 for every number of `usage`."""
        return usage.without_usage(media_type, body)

    def error(self, status: int, code: str, message: str) -> bytes:
        """An error body as the API words it."""
        return reading.openai_error(status, code, message)
