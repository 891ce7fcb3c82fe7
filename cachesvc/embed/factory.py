"""From settings to the embedder a proxy uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.embed.shared import SharedEmbedder
from cachesvc.errors import ConfigError, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cachesvc.embed.base import Embedder
    from cachesvc.settings import Embed


def create_all(
    tables: Mapping[str, Embed], data_dir: Path, say: Callable[[str], None]
) -> dict[str, Embedder | None]:
    """The embedder of each table, by its name; tables with the local model share one.

    Blocks as `create` does. Raises ConfigError and StartError.
    """
    made: dict[str, Embedder | None] = {}
    local: Embedder | None = None
    for name, table in tables.items():
        if table.provider == "local" and local is not None:
            made[name] = local
            continue
        at = f"embed.{name}" if name else "embed"
        made[name] = create(table, data_dir, say, at)
        local = made[name] if table.provider == "local" else local
    return made


def create(
    settings: Embed, data_dir: Path, say: Callable[[str], None], at: str = "embed"
) -> Embedder | None:
    """The embedder of the table `at`, None for provider `none`.

    Blocks while the local model is loaded (0.3 s) or built (about 5 s, once). Raises ConfigError
    and StartError.
    """
    if settings.provider == "none":
        return None
    if settings.provider == "local":
        return SharedEmbedder(_local(settings, data_dir, say, at))
    return SharedEmbedder(remote(settings, at))


def _local(settings: Embed, data_dir: Path, say: Callable[[str], None], at: str) -> Embedder:
    try:
        # Imported here: a proxy with a remote model has no ONNX Runtime.
        from cachesvc.embed import manifest
        from cachesvc.embed.local import LocalEmbedder
        from cachesvc.embed.model_files import ensure_built
    except ImportError as exc:
        missing = exc.name or "packages that are not here"
        raise StartError(
            f"the local model needs {missing}: run `pip install 'cachesvc[local]'`"
        ) from exc
    if settings.model not in ("", manifest.NAME):
        raise ConfigError(
            f"{at}.model: is {settings.model!r}; must be {manifest.NAME} with provider local"
        )
    if settings.dimensions not in (0, manifest.DIMENSIONS):
        raise ConfigError(
            f"{at}.dimensions: is {settings.dimensions}; must be {manifest.DIMENSIONS} (or 0)"
            " with provider local"
        )
    return LocalEmbedder(ensure_built(data_dir, say))


def remote(settings: Embed, at: str = "embed") -> Embedder:
    """The embedder of a remote provider. Raises ConfigError."""
    from cachesvc.embed.remote import Provider, RemoteEmbedder

    if settings.provider not in ("openai", "azure_openai"):
        raise ConfigError(
            f"{at}.provider: is {settings.provider!r}; must be local, openai, azure_openai or none"
        )
    provider = Provider.of(
        settings.provider,
        base_url=settings.base_url,
        model=settings.model,
        api_key=settings.api_key,
        api_version=settings.api_version,
        dimensions=settings.dimensions,
        timeout_seconds=settings.timeout_ms / 1000,
        max_input_bytes=settings.max_input_bytes,
        table=at,
    )
    return RemoteEmbedder(provider)
