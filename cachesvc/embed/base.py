"""The embedder's port."""

from __future__ import annotations

from typing import Protocol


class Embedder(Protocol):
    """Text in, vector out, and the space that says which vectors may be compared."""

    @property
    def space(self) -> str:
        """Provider, model and variant, endpoint, dimensions; at most 256 characters.

        Two embedders whose vectors may not be compared never have the same space.
        """

    @property
    def provider(self) -> str:
        """`local`, `openai` or `azure_openai`: the label of metrics."""

    async def warm(self) -> None:
        """Make the first `embed` as fast as the next. Raises EmbedError when it never can be."""

    async def embed(self, text: str, *, request_id: str | None = None) -> bytes | None:
        """The vector as little-endian float32 bytes.

        None when `text` is longer than the model reads: then it has no semantic tier.

        Never blocks the event loop. Raises EmbedError.
        """

    async def close(self) -> None: ...
