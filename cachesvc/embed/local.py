"""all-MiniLM-L6-v2 in this process, in integers, off the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from cachesvc.embed import manifest
from cachesvc.embed.session import Session
from cachesvc.embed.tokens import MAX_CHARACTERS, Tokens
from cachesvc.errors import EmbedError, StartError

if TYPE_CHECKING:
    from pathlib import Path

MAX_WAITING = 64
# Integer and float32 vectors of one text lie at a cosine of .99 and more. On a processor whose
# integer instructions saturate they would not, and every similarity would be off.
MIN_AGREEMENT = 0.97


class LocalEmbedder:
    """The model of a folder that `ensure_built` returned.

    One thread tokenises and runs the model for all callers, in the order they came. A caller that
    is cancelled while it waits costs nothing more.
    """

    provider = "local"
    space = manifest.SPACE

    def __init__(self, folder: Path, *, max_waiting: int = MAX_WAITING) -> None:
        """Load the model: 0.2 s and about 150 MB. Raises StartError."""
        about = manifest.read(folder)
        if about is None:
            raise StartError(f"{folder}: holds no built embedding model")
        try:
            tokens = Tokens(folder / manifest.TOKENIZER)
            self._session = Session(folder / manifest.MODEL, tokens)
        except EmbedError as exc:
            raise StartError(exc.message) from exc
        self._about = about
        self._max_waiting = max_waiting
        self._waiting = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")

    async def warm(self) -> None:
        """Embed once, and compare with what the float32 model said of the same text.

        Raises EmbedError when this machine's vectors are not the model's.
        """
        vector = await self.embed(self._about.probe_text)
        expected = np.frombuffer(self._about.probe_vector, "<f4")
        found = np.frombuffer(vector or b"", "<f4")
        cosine = float(found @ expected) if found.shape == expected.shape else 0.0
        if not cosine >= MIN_AGREEMENT:
            raise EmbedError(
                f"this machine computes the local model wrongly: cosine {cosine:.3f} to the"
                f" reference, must be at least {MIN_AGREEMENT}"
            )

    async def embed(self, text: str, *, request_id: str | None = None) -> bytes | None:
        """384 little-endian float32 of unit norm.

        None when the model cannot read all of `text`: over 256 tokens, over 8,192 characters, or
        with a word outside the vocabulary. Raises EmbedError, also when 64 texts are waiting.
        """
        if len(text) > MAX_CHARACTERS:
            return None
        if self._closed:
            raise EmbedError("the embedder is closed")
        if self._waiting >= self._max_waiting:
            raise EmbedError(f"too many texts are waiting ({self._max_waiting})")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._thread.submit(self._vector, text))
        finally:
            self._waiting -= 1

    def _vector(self, text: str) -> bytes | None:
        if self._closed:
            raise EmbedError("the embedder is closed")
        return self._session.vector(text)

    async def close(self) -> None:
        """Fail who is still waiting, and end the thread."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)
