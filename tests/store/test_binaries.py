"""PostgreSQL never runs as root, and runs wherever cachesvc was installed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from cachesvc.errors import StartError
from cachesvc.store import binaries
from cachesvc.store.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")

ORDINARY = """
import asyncio, sys
from pathlib import Path
import asyncpg
from cachesvc.store.embedded import EmbeddedPostgres

async def ask(url):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT 7")
    finally:
        await connection.close()

server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(asyncio.run(ask(server.url)))
server.stop()
"""


@pytest.fixture
def closed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as it is installed under a directory that root alone may enter."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    package = binaries.installed().parent.parent
    for source in (package / "pginstall18", package.with_name(f"{package.name}.libs")):
        target = closed / source.relative_to(package.parent)
        shutil.copytree(
            source, target, symlinks=True, ignore=shutil.ignore_patterns("*.a", "include")
        )
    (closed / package.name / "__init__.py").touch()
    monkeypatch.syspath_prepend(closed)
    assert closed in binaries.installed().parents
    return closed


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for copies that every user can reach."""
    parent = Path(tempfile.mkdtemp(prefix="cachesvc-test-"))
    parent.chmod(0o755)
    monkeypatch.setattr(binaries, "OPEN_FOLDER", parent / "cachesvc")
    yield parent / "cachesvc"
    shutil.rmtree(parent)


def started(data: Path) -> EmbeddedPostgres:
    """A server that answered once."""
    server = EmbeddedPostgres(data)
    server.start()

    async def ask() -> object:
        connection = await asyncpg.connect(server.url)
        try:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            return await connection.fetchval("SELECT '[1,2]'::vector <-> '[1,3]'::vector")
        finally:
            await connection.close()

    assert asyncio.run(ask()) == 1
    return server


@as_root
def test_root_runs_it_as_nobody_and_keeps_that_account(tmp_path: Path) -> None:
    server = started(tmp_path / "data")
    assert server.pid
    owner = os.stat(f"/proc/{server.pid}").st_uid
    server.stop()
    assert owner == pwd.getpwnam("nobody").pw_uid
    assert (tmp_path / "data" / "postgres").stat().st_uid == owner


@as_root
def test_root_runs_the_cluster_of_an_ordinary_user_as_that_user(tmp_path: Path) -> None:
    started(tmp_path / "data").stop()
    for path in (tmp_path / "data" / "postgres").rglob("*"):
        os.chown(path, 4321, 4321, follow_symlinks=False)
    os.chown(tmp_path / "data" / "postgres", 4321, 4321)
    server = started(tmp_path / "data")
    assert server.pid
    owner = os.stat(f"/proc/{server.pid}").st_uid
    server.stop()
    assert owner == 4321


@as_root
@pytest.mark.usefixtures("closed_package")
def test_programs_in_a_closed_place_are_copied_once_to_an_open_one(
    tmp_path: Path, open_folder: Path
) -> None:
    started(tmp_path / "first").stop()
    (copy,) = open_folder.iterdir()
    made = copy.stat().st_mtime_ns
    started(tmp_path / "second").stop()
    assert [copy] == list(open_folder.iterdir())
    assert copy.stat().st_mtime_ns == made
    for path in (copy, *copy.rglob("*")):
        assert path.is_symlink() or not path.stat().st_mode & 0o022
        assert path.lstat().st_uid == 0
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o700


@as_root
@pytest.mark.usefixtures("closed_package")
@pytest.mark.parametrize("fault", ["somebody else's", "writable by all"])
def test_a_place_that_others_can_write_to_is_not_trusted(
    tmp_path: Path, open_folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_folder.mkdir()
    if fault == "somebody else's":
        os.chown(open_folder, 4321, 4321)
    else:
        open_folder.chmod(0o777)
    private = open_folder.parent / "private"
    private.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    server = started(tmp_path / "data")
    assert list(open_folder.iterdir()) == []
    assert len(list(private.iterdir())) == 1
    server.stop()
    assert list(private.iterdir()) == []


@as_root
def test_an_ordinary_user_needs_nothing_special() -> None:
    nobody = pwd.getpwnam("nobody")
    python = _python_for(nobody.pw_uid)
    if python is None:
        pytest.skip("no Python here that an ordinary user can run")
    home = Path(tempfile.mkdtemp(prefix="cachesvc-test-"))
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    try:
        done = _run_as(nobody.pw_uid, [*python, ORDINARY, str(home / "data")])
        assert (done.stdout.strip(), done.stderr) == ("7", "")
        assert (home / "data" / "postgres").stat().st_uid == nobody.pw_uid
    finally:
        shutil.rmtree(home)


def _python_for(uid: int) -> list[str] | None:
    """A Python which that user can run, with our packages on its path."""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-W", "error", "-c"]
        try:
            done = _run_as(uid, [*command, "import asyncpg, cachesvc.store.embedded"])
        except OSError:
            continue
        if done.returncode == 0:
            return command
    return None


def _run_as(uid: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(part for part in sys.path if part)
    return subprocess.run(
        command,
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_its_package_it_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"pip install 'cachesvc\[embedded\]'"):
        EmbeddedPostgres(tmp_path / "data").start()
