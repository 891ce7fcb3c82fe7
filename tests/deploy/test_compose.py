"""compose.yaml: what it says is what cachesvc takes; its parts, run by hand, work together."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy import recipes
from tests.deploy.processes import DEPLOY, Program, free_port
from tests.deploy.provider import MODEL, Provider
from tests.end_to_end.stack import COMMAND, clean_environment, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from cachesvc.store.embedded import EmbeddedPostgres

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
PARTS: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, part in PARTS.items() if part["image"].startswith("cachesvc-")]
SERVICE_TOML = (DEPLOY / COMPOSE["configs"]["service"]["file"]).read_text("utf-8")


def environment_of(name: str) -> dict[str, str]:
    """As a container gets it: `${NAME:-default}` is its default."""
    given = PARTS[name].get("environment", {})
    return {k: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(v)) for k, v in given.items()}


@pytest.mark.parametrize("name", [name for name in OURS if "command" in PARTS[name]])
def test_environment_and_command_of_each_part_are_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = SERVICE_TOML if "CACHESVC_CONFIG" in environment_of(name) else None
    recipes.load(environment_of(name), PARTS[name]["command"], tmp_path, monkeypatch, toml=toml)


@pytest.mark.parametrize("name", PARTS)
def test_each_part_is_confined(name: str) -> None:
    part = PARTS[name]
    assert part["read_only"] is True
    assert part["cap_drop"] == ["ALL"]
    assert part["security_opt"] == ["no-new-privileges:true"]
    assert "restart" in part
    for port in part.get("ports", ()):
        assert port.startswith("127.0.0.1:")
    assert not part.get("privileged")


@pytest.mark.parametrize("name", PARTS)
def test_each_secret_that_is_named_is_mounted_and_defined(name: str) -> None:
    part = PARTS[name]
    named = {
        str(value).rpartition("/")[2]
        for value in part.get("environment", {}).values()
        if str(value).startswith("/run/secrets/")
    }
    assert named == set(part.get("secrets", ()))
    assert named <= set(COMPOSE["secrets"])
    assert not [
        key
        for key in part.get("environment", {})
        if re.search(r"(WORD|SECRET|URL)$", key)
        and not str(part["environment"][key]).startswith(("http", "${"))
    ]
    text = json.dumps(part)
    mounted = [volume.split(":")[1] for volume in part.get("volumes", ())]
    files = re.findall(r"/etc/cachesvc/(?:pki|proxy|service)/", text)
    assert all(file.rstrip("/") in mounted for file in files)
    volumes = {volume.split(":")[0] for volume in part.get("volumes", ())}
    assert volumes <= set(COMPOSE["volumes"])


def test_parts_start_in_an_order_that_keeps_the_cache_out_of_the_traffics_way() -> None:
    def awaited(name: str) -> dict[str, str]:
        return {k: v["condition"] for k, v in PARTS[name].get("depends_on", {}).items()}

    assert awaited("migrate") == {"postgres": "service_healthy"}
    assert awaited("service") == dict.fromkeys(
        ("migrate", "certs"), "service_completed_successfully"
    )
    assert awaited("proxy") == {"certs": "service_completed_successfully"}
    for name in ("postgres", "service", "proxy"):
        assert PARTS[name]["healthcheck"]["test"][0] == "CMD"
        assert PARTS[name]["restart"] == "unless-stopped"
    assert PARTS["postgres"]["image"].startswith("pgvector/pgvector:pg")


def test_only_the_proxy_reaches_outside_and_only_the_service_reaches_the_database() -> None:
    networks = {name: part.get("networks", []) for name, part in PARTS.items()}
    outside = [n for n, c in COMPOSE["networks"].items() if not c.get("internal")]
    assert [name for name, joined in networks.items() if set(joined) & set(outside)] == ["proxy"]
    assert {n for n, joined in networks.items() if "database" in joined} == {
        "postgres",
        "migrate",
        "service",
    }


def test_docker_compose_takes_the_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not installed")
    subprocess.run(
        [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "-q"],
        check=True,
        cwd=tmp_path,
        timeout=60,
    )


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    command = ["/bin/sh", str(DEPLOY / "compose" / "secrets.sh"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(COMPOSE["secrets"]) == set(made) - {".gitignore"}
    for name, entry in COMPOSE["secrets"].items():
        assert entry["file"] == f"compose/secrets/{name}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert made["postgres_password"].strip() in made["database_url"]
    assert len(made["scope_secret"]) == 64
    assert made[".gitignore"] == "*\n"
    again = subprocess.run(command, check=True, capture_output=True, timeout=20)
    assert b"stay" in again.stderr
    assert {path.name: path.read_text() for path in folder.iterdir()} == made


class Rehearsal:
    """The parts of compose.yaml as processes here: its commands, environment, certificates.

    Only places differ: what a container sees under /etc/cachesvc and /run/secrets is in `folder`,
    and names of the network are ports of loopback.
    """

    def __init__(self, folder: Path, database_url: str, upstream: str) -> None:
        self.folder = folder
        self.ports = {port: free_port() for port in (8700, 8701, 8702)}
        self._upstream = upstream
        for name in ("pki", "service", "proxy", "secrets", "bin"):
            (folder / name).mkdir()
        (folder / "secrets" / "database_url").write_text(database_url)
        (folder / "secrets" / "scope_secret").write_text("0123456789abcdef")
        (folder / "bin" / "cachesvc").symlink_to(COMMAND)
        (folder / "service.toml").write_text(self.here(SERVICE_TOML))

    def here(self, text: str) -> str:
        for name in ("pki", "service", "proxy"):
            text = text.replace(f"/etc/cachesvc/{name}", str(self.folder / name))
        text = text.replace("/run/secrets", str(self.folder / "secrets"))
        text = text.replace("https://service:", "https://localhost:").replace(
            "0.0.0.0", "127.0.0.1"
        )
        text = text.replace("https://api.openai.com", self._upstream)
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return text

    def environment(self, name: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {k: self.here(v) for k, v in environment_of(name).items()} | {"PATH": path}

    def run(self, name: str, *command: str) -> str:
        """A part that ends; what it printed."""
        words = command or (COMMAND, *PARTS[name]["command"])
        done = subprocess.run(
            words,
            env=clean_environment(**self.environment(name)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, name: str) -> Program:
        return Program(
            [COMMAND, *PARTS[name]["command"]],
            folder=self.folder / f"run-{name}",
            environment=self.environment(name),
        )

    def healthy(self, name: str) -> bool:
        """As the part's own health check finds it."""
        words = [self.here(word) for word in PARTS[name]["healthcheck"]["test"][1:]]
        assert words[0] == "python"
        found = subprocess.run(
            [sys.executable, *words[1:]], check=False, capture_output=True, timeout=20
        )
        return found.returncode == 0


def test_the_parts_work_together_over_mtls(
    postgres: EmbeddedPostgres, empty_database_url: str, tmp_path: Path
) -> None:
    with Provider() as provider:
        parts = Rehearsal(tmp_path, empty_database_url, provider.url)
        assert "the schema is at 0" in parts.run("migrate")
        folders = [str(tmp_path / name) for name in ("pki", "service", "proxy")]
        for _ in range(2):  # `up` runs it again each time
            script = str(DEPLOY / COMPOSE["configs"]["certs"]["file"])
            parts.run("certs", "/bin/sh", script, *folders)
        with parts.start("service") as service, parts.start("proxy"):
            eventually(lambda: parts.healthy("service"), 20)
            eventually(lambda: parts.healthy("proxy"), 20)
            operator = (COMMAND, "policy", "set", "default")
            assert json.loads(parts.run("operator", *operator))["sharing"] == "credential"
            assert "default" in parts.run("operator")
            eventually(lambda: _status(parts) == "MISS", 10, every=0.2)
            eventually(lambda: _status(parts) == "HIT", 10)
            service.stop()
            assert not parts.healthy("service")
            assert parts.healthy("proxy")
            assert _status(parts, "Still there?") == "MISS"


def _status(parts: Rehearsal, question: str = "Does it work?") -> str | None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
    url = f"http://127.0.0.1:{parts.ports[8701]}/v1/chat/completions"
    reply = httpx.post(url, json=body, timeout=30, trust_env=False)
    assert reply.status_code == 200
    status: str | None = reply.headers.get("x-ai-cache-status")
    return status


def test_each_part_gets_its_own_key_and_no_other(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("pki", "service", "proxy")]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cachesvc").symlink_to(COMMAND)
    for folder in folders:
        folder.mkdir()
    subprocess.run(
        ["/bin/sh", str(DEPLOY / "compose" / "certs.sh"), *map(str, folders)],
        env=clean_environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}"),
        check=True,
        timeout=60,
    )
    keys = {folder.name: {key.stem for key in folder.glob("*.key")} for folder in folders}
    assert keys["service"] == {"service"}
    assert keys["proxy"] == {"client"}
    assert all(
        stat.S_IMODE(key.stat().st_mode) == 0o600
        for folder in folders
        for key in folder.glob("*.key")
    )
