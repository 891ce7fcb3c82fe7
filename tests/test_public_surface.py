"""What users import is what is promised, and each part loads only what it needs."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources

import pytest

import cachesvc
from cachesvc.cli import cli

COMMANDS = {
    *(
        "up",
        "serve",
        "proxy",
        "migrate",
        "model",
        "policy",
        "entries",
        "stats",
        "purge",
        "doctor",
        "certs",
    ),
}


def test_the_package_exports_exactly_this() -> None:
    assert set(cachesvc.__all__) == {"CacheClient", "CachingTransport", "__version__"}
    public = {name for name in vars(cachesvc) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(cachesvc, name), type(sys))}
    assert public - modules - {"annotations", "TYPE_CHECKING"} <= set(cachesvc.__all__)
    for name in cachesvc.__all__:
        assert getattr(cachesvc, name) is not None
    with pytest.raises(AttributeError):
        _ = cachesvc.Nothing


def test_the_version_is_the_packages() -> None:
    assert cachesvc.__version__ == metadata.version("cachesvc")


def test_types_are_shipped() -> None:
    assert resources.files("cachesvc").joinpath("py.typed").is_file()


def test_the_commands_are_these() -> None:
    import click

    assert set(cli.list_commands(click.Context(cli))) == COMMANDS


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("cachesvc", {"httpx", "asyncpg", "aiohttp", "uvicorn", "numpy"}),
        (
            "cachesvc.service.run",
            {"sqlalchemy", "alembic", "aiohttp", "httpx", "onnxruntime", "tokenizers", "onnx"},
        ),
        (
            "cachesvc.proxy.run",
            {"asyncpg", "sqlalchemy", "alembic", "starlette", "cachesvc.store", "onnx", "pgvector"},
        ),
        (
            "cachesvc.inprocess.transport",
            {"asyncpg", "starlette", "uvicorn", "cachesvc.store", "httpx2", "onnxruntime", "onnx"},
        ),
    ],
)
def test_a_part_loads_only_what_it_is(module: str, never: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not never & set(done.stdout.split())


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_help_shows_an_example(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cachesvc", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"Example:  cachesvc {command}" in done.stdout
