"""The real PgBouncer in transaction mode, in front of a test's server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from cachesvc.store import binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
# Few server sessions, taken in turn: what one statement leaves behind, another client's meets.
_SETTINGS = """
[databases]
* = host=/proc/self/cwd port=5432

[pgbouncer]
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 4
server_round_robin = 1
max_client_conn = 200
ignore_startup_parameters = {ignored}
"""


@contextmanager
def pgbouncer(database_url: str, *, ignored: str = "") -> Iterator[str]:
    """The same database through a PgBouncer; `ignored` are start-up parameters it swallows."""
    if PROGRAM is None:
        pytest.skip("pgbouncer is not installed")
    parts = urlsplit(database_url)
    cluster = Path(parse_qs(parts.query)["host"][0])
    account = binaries.account_for(cluster)
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
    (folder / "ini").write_text(_SETTINGS.format(folder=folder, ignored=ignored), "utf-8")
    (folder / "users").write_text(f'"{parts.username}" ""\n', "utf-8")
    if account.uid != os.geteuid():
        os.chown(folder, account.uid, account.gid)
        for name in ("ini", "users"):
            os.chown(folder / name, account.uid, account.gid)
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [PROGRAM, "-q", folder / "ini"],
                cwd=cluster,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **account.to_popen(),
            )
        try:
            _wait_for(folder / ".s.PGSQL.6432", process, folder / "log")
            yield f"postgresql://{parts.username}@{parts.path}?host={quote(str(folder))}&port=6432"
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder)


def _wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until `path` takes connections: it is there a moment before PgBouncer listens on it."""
    deadline = time.monotonic() + 20
    while not _listens(path):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        return line.connect_ex(str(path)) == 0
