"""The model, built once per environment; a loaded embedder; a provider on a socket."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cachesvc.embed.local import LocalEmbedder
from cachesvc.embed.model_files import install_model
from cachesvc.embed.remote import Provider, RemoteEmbedder
from tests.embed.provider import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.embed.provider import FakeProvider


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built model: that of this Python environment, installed if it is not there yet."""

    def say(message: str) -> None:
        sys.stderr.write(f"{message}\n")

    return install_model(tmp_path_factory.mktemp("spare"), say)


@pytest.fixture(scope="session")
def weights_folder(built: Path) -> Path:
    return built.parent / "weights"


@pytest.fixture
async def local(built: Path) -> AsyncIterator[LocalEmbedder]:
    embedder = LocalEmbedder(built)
    yield embedder
    await embedder.close()


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with serving() as running:
        yield running


@pytest.fixture
async def remote(provider: FakeProvider) -> AsyncIterator[RemoteEmbedder]:
    embedder = RemoteEmbedder(
        Provider.of(
            "openai",
            base_url=provider.url,
            model="some-model",
            api_key="sk-canary-0123456789",
            timeout_seconds=5.0,
        )
    )
    yield embedder
    await embedder.close()
