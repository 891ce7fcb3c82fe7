"""What lies beside a built model and says which one it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cachesvc.embed import weights
from cachesvc.embed.disk import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384
# Grows whenever the graph or its quantisation changes: an older file is built again.
SCHEME = 1
SPACE = f"local:{NAME}:int8-matmul-per-channel:{DIMENSIONS}"
MODEL = "model-int8.onnx"
TOKENIZER = "tokenizer.json"
_FILE = "manifest.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`. SHA-256 in hex.

    `probe_vector` is the float32 model's vector of `probe_text`, 384 little-endian float32: a
    processor on which the integer model drifts away from it is found at start, not by its hits.
    """

    scheme: int
    space: str
    model_sha256: str
    sources: dict[str, str]
    built_with: dict[str, str]
    probe_text: str
    probe_vector: bytes


def write(folder: Path, manifest: Manifest) -> None:
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / _FILE).write_bytes(text + b"\n")


def read(folder: Path) -> Manifest | None:
    """The manifest of a built model, None when there is none that can be read."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def fault(folder: Path) -> str | None:
    """What is wrong with the built model in `folder`, None when it is whole and of this scheme."""
    manifest = read(folder)
    if manifest is None:
        return f"{folder / _FILE}: cannot be read"
    if manifest.scheme != SCHEME or manifest.sources != weights.SHA256:
        return f"{folder}: the model was built by another version"
    for name, expected in (
        (MODEL, manifest.model_sha256),
        (TOKENIZER, weights.SHA256[TOKENIZER]),
    ):
        try:
            if sha256_of(folder / name) != expected:
                return f"{folder / name}: is damaged (its SHA-256 differs)"
        except OSError as exc:
            return f"{folder / name}: cannot be read: {exc.strerror}"
    return None
