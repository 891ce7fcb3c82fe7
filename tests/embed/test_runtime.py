"""ONNX Runtime embeds, and keeps what it saw to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

EMBED = """
import asyncio, sys
from pathlib import Path
from cachesvc.embed.local import LocalEmbedder

async def main() -> None:
    embedder = LocalEmbedder(Path(sys.argv[1]))
    await embedder.warm()
    print(len(await embedder.embed("How do I reset my password?") or b""))
    await embedder.close()

asyncio.run(main())
"""


def embed(built: Path, home: Path, **environment: str) -> tuple[int, list[str]]:
    """A vector's bytes, and what a fresh process that embeds one text left at home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", EMBED, str(built)],
        env={**kept, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout), sorted(str(found.relative_to(home)) for found in home.rglob("*"))


@pytest.mark.parametrize("cache", ["", "elsewhere"])
def test_a_process_that_embeds_leaves_nothing_behind(
    built: Path, tmp_path: Path, cache: str
) -> None:
    where = {"XDG_CACHE_HOME": str(tmp_path / cache)} if cache else {}
    assert embed(built, tmp_path, **where) == (384 * 4, [])
