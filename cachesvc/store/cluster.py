"""The data directory of the embedded server: whose it is, what is left in it, how it begins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from cachesvc.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cachesvc.store.binaries import Account, Binaries

ROLE = DATABASE = "cachesvc"
PORT = 5432
# The server and its tools reach the data directory through their working directory, which is set
# before the account changes: so it may lie under directories closed to that account.
HERE = "/proc/self/cwd"
ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}
_READY_LINE, _SOCKET_LINE = 7, 4


def url(socket_folder: Path, database: str = DATABASE) -> str:
    return f"postgresql://{ROLE}@/{database}?host={quote(str(socket_folder))}&port={PORT}"


class Lock:
    """One process per data directory, for as long as it lives."""

    def __init__(self, data_dir: Path) -> None:
        """Raises StartError when another process holds it."""
        self.path = data_dir / "postgres.lock"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise StartError(f"{data_dir}: in use by process {holder}") from exc
        os.truncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode())

    def release(self) -> None:
        os.close(self._file)

    @staticmethod
    def held(data_dir: Path) -> bool:
        """Whether some process holds it now."""
        try:
            file = os.open(data_dir / "postgres.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False


def ready_pid(cluster: Path) -> int | None:
    """The server's process id once it says that it accepts connections."""
    lines = _status(cluster)
    if len(lines) > _READY_LINE and lines[_READY_LINE].strip() == "ready":
        return int(lines[0])
    return None


def socket_folder(cluster: Path) -> Path:
    """Where the running server's socket is; `.` is the cluster itself."""
    lines = _status(cluster)
    return cluster / (lines[_SOCKET_LINE].strip() if len(lines) > _SOCKET_LINE else ".")


def _status(cluster: Path) -> list[str]:
    try:
        return (cluster / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []


def clear(cluster: Path) -> None:
    """Make room after a kill -9: end what still runs on this cluster, then unlink its locks.

    A dead server's process id may stay as a zombie where process 1 does not reap, and then
    PostgreSQL believes its own stale locks. They go only when nothing works on the files any more,
    and only while we hold our own lock. Raises StartError when something cannot be ended.
    """
    for number, seconds in ((signal.SIGINT, 5.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 2.0)):
        if not _ended_within(0.2 if number == signal.SIGINT else 0.0, cluster):
            for pid in _at_work(cluster):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if _ended_within(seconds, cluster):
            break
    else:
        raise StartError(f"{cluster}: an old server still runs on it")
    for name in ("postmaster.pid", f".s.PGSQL.{PORT}.lock", f".s.PGSQL.{PORT}"):
        (cluster / name).unlink(missing_ok=True)


def _ended_within(seconds: float, cluster: Path) -> bool:
    deadline = time.monotonic() + seconds
    while next(_at_work(cluster), None) is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _at_work(cluster: Path) -> Iterator[int]:
    """Every PostgreSQL process whose working directory is this cluster."""
    try:
        here = cluster.stat()
    except FileNotFoundError:
        return
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        # A zombie has no `exe` and no `cwd`, and other users' processes hide theirs.
        with contextlib.suppress(OSError):
            program = os.readlink(f"/proc/{name}/exe").removesuffix(" (deleted)")
            there = os.stat(f"/proc/{name}/cwd")
            same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
            if same and program.endswith("/postgres"):
                yield int(name)


def initialise(cluster: Path, binaries: Binaries, account: Account) -> None:
    """Make a new cluster with our role and database, whole or not at all. Raises StartError."""
    draft = cluster.with_name(f"{cluster.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if account.uid != os.geteuid():
        os.chown(draft, account.uid, account.gid)
    options = ("--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--no-locale")
    _run((binaries.folder / "initdb", "-D", HERE, "-U", ROLE, *options), draft, account)
    single = (binaries.folder / "postgres", "--single", "-D", HERE, "postgres")
    _run(single, draft, account, f"CREATE DATABASE {DATABASE}\n")
    draft.rename(cluster)


def _run(command: tuple[str | Path, ...], cluster: Path, account: Account, text: str = "") -> None:
    done = subprocess.run(
        command,
        cwd=cluster,
        env=ENVIRONMENT,
        input=text.encode(),
        capture_output=True,
        check=False,
        **account.to_popen(),
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode or "ERROR:" in said or "FATAL:" in said:
        lines = [line for line in said.splitlines() if "error:" in line.lower() or "FATAL" in line]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise StartError(f"PostgreSQL cannot set up {cluster.parent}: {reason.strip()}")
