"""Does a recipe say what cachesvc takes? Its environment, its settings, its commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from cachesvc import config
from cachesvc.cli import cli
from cachesvc.settings import Section, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pytest

SECRETS = {
    "DATABASE_URL_FILE": "postgresql://cachesvc:secret@postgres:5432/cachesvc",
    "SCOPE_SECRET_FILE": "0123456789abcdef",
}


def setting_names(section: type[msgspec.Struct] = Settings, prefix: str = "CACHESVC") -> set[str]:
    """Every environment variable that is a setting, and the one that names the file."""
    names = {"CACHESVC_CONFIG"}
    for field in msgspec.structs.fields(section):
        name = f"{prefix}_{field.name.upper()}"
        if isinstance(field.type, type) and issubclass(field.type, Section):
            names |= setting_names(field.type, name)
        elif field.name != "identity":
            names.add(name)
    return names


def load(
    environment: Mapping[str, str],
    arguments: Sequence[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    toml: str | None = None,
) -> Settings:
    """The settings of a container with this environment and command line.

    Secrets' files are replaced by some of the test's own. Raises ConfigError as a start would.
    """
    unknown = {name for name in environment if name.startswith("CACHESVC_")} - setting_names()
    assert not unknown, f"no such setting: {unknown}"
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, _secret(name, folder) if name.endswith(tuple(SECRETS)) else value)
        if toml is not None:
            (folder / "cachesvc.toml").write_text(toml, "utf-8")
            patch.setenv("CACHESVC_CONFIG", str(folder / "cachesvc.toml"))
        return config.load(None, _flags(parsed(arguments)))


def parsed(arguments: Sequence[str]) -> click.Context:
    """The command line as cachesvc understands it. Raises click.UsageError where it does not."""
    command: click.Command = cli
    rest = list(arguments)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"no such command: {arguments}"
        command, rest = found, rest[1:]
    return command.make_context(command.name, rest)


def _flags(context: click.Context) -> dict[str, Any]:
    dotted = {
        "service_listen": "service.listen",
        "proxy_listen": "proxy.listen",
        "upstream": "proxy.upstream",
    }
    return {dotted[name]: value for name, value in context.params.items() if name in dotted}


def _secret(name: str, folder: Path) -> str:
    (content,) = [text for ending, text in SECRETS.items() if name.endswith(ending)]
    path = folder / name.lower()
    path.write_text(content, "utf-8")
    return str(path)
