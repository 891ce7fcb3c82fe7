"""One ONNX Runtime session: text in, vector out, on the calling thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cachesvc.embed.runtime import onnxruntime, states
from cachesvc.errors import EmbedError

if TYPE_CHECKING:
    from pathlib import Path

    from cachesvc.embed.tokens import Tokens

_ERRORS_ONLY = 3
# The runtime's exceptions have no base of their own.
RUNTIME_ERRORS = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
    MemoryError,
)


class Session:
    """A model on one thread. One text at a time, never padded and never batched.

    Integer models scale a whole batch together, so in a batch a text's vector would depend on its
    neighbours and on their padding.
    """

    def __init__(self, model: Path, tokens: Tokens) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        self._tokens = tokens
        try:
            self._model = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except RUNTIME_ERRORS as exc:
            raise EmbedError(f"{model}: cannot be loaded by ONNX Runtime") from exc

    def vector(self, text: str) -> bytes | None:
        """384 little-endian float32, unit norm; None where `Tokens.read` is. Raises EmbedError."""
        try:
            ids = self._tokens.read(text)
            if ids is None:
                return None
            row = np.array([ids], dtype=np.int64)
            feeds = {"input_ids": row, "attention_mask": np.ones_like(row)}
            vector = self._model.run(["embedding"], feeds)[0][0]
        except RUNTIME_ERRORS as exc:
            raise EmbedError("the local model could not be run") from exc
        if not np.isfinite(vector).all():
            raise EmbedError("the local model gave a vector that is not finite")
        return bytes(vector.astype("<f4").tobytes())
