"""From `[embed]` to an embedder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cachesvc.embed.factory import create, create_all
from cachesvc.embed.shared import SharedEmbedder
from cachesvc.errors import ConfigError, StartError
from cachesvc.settings import Embed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.embed.provider import FakeProvider


def _silent(_: str) -> None:
    pass


def test_none_is_no_embedder(tmp_path: Path) -> None:
    assert create(Embed(provider="none"), tmp_path, _silent) is None


async def test_the_default_is_the_local_model(tmp_path: Path, built: Path) -> None:
    embedder = create(Embed(), tmp_path, _silent)
    assert isinstance(embedder, SharedEmbedder)
    assert embedder.provider == "local"
    await embedder.warm()
    assert len(await embedder.embed("How do I reset my password?") or b"") == 4 * 384
    await embedder.close()


@pytest.mark.parametrize("name", ["openai", "azure_openai"])
async def test_a_remote_provider_is_asked_as_the_settings_say(
    tmp_path: Path, provider: FakeProvider, name: str
) -> None:
    settings = Embed(
        provider=name,
        base_url=provider.url,
        model="m",
        api_key="k",
        api_version="2030-01-01",
        dimensions=3,
        max_input_bytes=10,
    )
    embedder = create(settings, tmp_path, _silent)
    assert isinstance(embedder, SharedEmbedder)
    assert embedder.space == f"{name}:{provider.url}:m:3"
    assert await embedder.embed("short") is not None
    assert await embedder.embed("eleven bytes") is None
    await embedder.close()
    (call,) = provider.received
    assert call.body["dimensions"] == 3
    assert call.target.endswith("?api-version=2030-01-01") == (name == "azure_openai")


def test_openai_has_defaults_for_address_and_model(tmp_path: Path) -> None:
    embedder = create(Embed(provider="openai", api_key="k"), tmp_path, _silent)
    assert embedder is not None
    assert embedder.space == "openai:https://api.openai.com/v1:text-embedding-3-small:native"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (Embed(provider="word2vec"), "embed.provider"),
        (Embed(model="bge-small"), "embed.model"),
        (Embed(dimensions=256), "embed.dimensions"),
        (Embed(provider="azure_openai", model="m"), "embed.base_url"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: Embed, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        create(settings, tmp_path, _silent)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (Embed(provider="openai", api_key="k\u00e9y"), "api_key"),
        (Embed(provider="openai", base_url="http://u:p@host"), "base_url"),
        (Embed(model="bge-small"), "model"),
    ],
)
def test_a_wrong_setting_of_a_named_table_is_named_with_it(
    tmp_path: Path, settings: Embed, field: str
) -> None:
    tables = {"": Embed(provider="none"), "chinese": settings}
    with pytest.raises(ConfigError, match=rf"^embed\.chinese\.{field}: ") as refusal:
        create_all(tables, tmp_path, _silent)
    assert "k\u00e9y" not in refusal.value.message


async def test_tables_with_the_local_model_load_it_once(tmp_path: Path, built: Path) -> None:
    none = Embed(provider="none")
    made = create_all({"": Embed(), "other": none, "again": Embed()}, tmp_path, _silent)
    local = made[""]
    assert local is not None
    assert made["again"] is local
    assert made["other"] is None
    await local.close()


def test_a_missing_model_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(StartError, match="run `cachesvc model install`"):
        create(Embed(), tmp_path, _silent)
