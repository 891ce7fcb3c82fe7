"""PostgreSQL as a child process of ours: it needs no set-up, and it goes when we go."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cachesvc.errors import StartError
from cachesvc.store import binaries, cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_START_SECONDS = 60.0  # crash recovery included
_STOP_SECONDS = 4.0  # then it is told to leave without a checkpoint
_QUIT_SECONDS = 0.5
_MAX_SOCKET_FOLDER_BYTES = 93  # of 107: the rest is "/.s.PGSQL.5432"
_MAX_LOG_BYTES = 8 * 1024 * 1024
_SOCKET_PREFIX = "cachesvc-"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

_SETTINGS = {
    "listen_addresses": "",
    "port": str(cluster.PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "40",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "128MB",
    "huge_pages": "off",
    # Parallel workers take shared memory, of which containers have little, and lookups want none.
    "max_parallel_maintenance_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",
    "jit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # No statement and no DETAIL: they would show prompts and answers.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


class EmbeddedPostgres:
    """A server on `data_dir`/postgres, reachable through a private Unix socket only.

    Its URL stays the same for as long as this object is used, however often it is started.
    Usable by one process at a time. Works as root (the server then runs as `nobody`) and not, and
    where the data directory lies under directories closed to everybody else.
    """

    name = "postgres"

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._data_dir = Path(data_dir).absolute()
        self._cluster = self._data_dir / "postgres"
        self._log = self._data_dir / "postgres.log"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._lock: cluster.Lock | None = None
        self._binaries: binaries.Binaries | None = None
        self._socket_folder = self._cluster
        self._private_folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_of(cluster.DATABASE)

    def url_of(self, database: str) -> str:
        return cluster.url(self._socket_folder, database)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exists(self) -> bool:
        """Whether it has ever been started."""
        return self._cluster.exists()

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @staticmethod
    def running_url(data_dir: Path) -> str | None:
        """The URL of the server which another process of ours runs on `data_dir`, if one does."""
        folder = Path(data_dir).absolute() / "postgres"
        if not cluster.Lock.held(folder.parent) or cluster.ready_pid(folder) is None:
            return None
        return cluster.url(cluster.socket_folder(folder))

    def start(self) -> None:
        """Start the server, also again after it died; returns once it accepts connections.

        Raises StartError. Call it from the main thread: the kernel ends the server together with
        the thread that started it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise StartError("PostgreSQL must be started from the main thread")
        try:
            self._prepare()
            self._launch()
            self._wait_until_ready()
        except OSError as exc:
            self.stop()
            raise StartError(f"{self._data_dir}: PostgreSQL cannot start: {exc}") from exc
        except StartError:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server for good, within 5 s, with nothing left running; safe to call twice."""
        if self._process is not None:
            for number, seconds in (
                (signal.SIGINT, _STOP_SECONDS),
                (signal.SIGQUIT, _QUIT_SECONDS),
                (signal.SIGKILL, None),
            ):
                if self._process.poll() is None:
                    self._process.send_signal(number)
                    _wait(self._process, seconds)
            self._process = None
        _remove(self._socket_folder)
        self._socket_folder = self._cluster
        if self._binaries is not None:
            binaries.discard(self._binaries)
            self._binaries = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _prepare(self) -> None:
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = cluster.Lock(self._data_dir)
        _remove(cluster.socket_folder(self._cluster))
        _remove(self._socket_folder)
        cluster.clear(self._cluster)
        if self._process is not None:
            # It works no more, but may not have ended yet.
            _wait(self._process, _STOP_SECONDS)
        account = binaries.account_for(self._cluster)
        if self._binaries is None:
            self._binaries = binaries.runnable_by(account)
        if not self._cluster.exists():
            cluster.initialise(self._cluster, self._binaries, account)
        self._socket_folder = self._cluster
        if len(os.fsencode(self._cluster)) > _MAX_SOCKET_FOLDER_BYTES:
            self._socket_folder = self._private_folder = _private_folder(self._private_folder)
            if account.uid != os.geteuid():
                os.chown(self._socket_folder, account.uid, account.gid)

    def _launch(self) -> None:
        assert self._binaries is not None
        account = binaries.account_for(self._cluster)
        inside = self._socket_folder == self._cluster
        settings = {
            **self._settings,
            "unix_socket_directories": "." if inside else str(self._socket_folder),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(self._log_file(), "ab") as log:
            self._process = subprocess.Popen(
                [self._binaries.folder / "postgres", "-D", cluster.HERE, *options],
                cwd=self._cluster,
                env=cluster.ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),
                **account.to_popen(),
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while cluster.ready_pid(self._cluster) != self._process.pid:
            if self._process.poll() is not None:
                raise StartError(f"PostgreSQL did not start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise StartError(f"PostgreSQL was not ready after {_START_SECONDS:.0f} s")
            time.sleep(0.01)

    def _log_file(self) -> Path:
        file = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(file).st_size > _MAX_LOG_BYTES:
            os.truncate(file, 0)
        os.close(file)
        return self._log

    def _last_words(self) -> str:
        """The line of the log that tells most, without its time stamp."""
        lines = self._log.read_text("utf-8", "replace").splitlines()[-20:]
        faults = [line for line in lines if "FATAL:" in line or "PANIC:" in line]
        line = (faults or lines or ["no line in its log"])[-1]
        return line.partition("] ")[2] or line


def _private_folder(last: Path | None) -> Path:
    """A new socket folder outside the cluster; where `last` was if that can be.

    Whoever connects knows the URL of the first start, and a restart must not change it.
    """
    if last is not None:
        with contextlib.suppress(FileExistsError):
            last.mkdir(mode=0o700)
            return last
    return Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir="/tmp"))


def _remove(folder: Path) -> None:
    """Remove a socket folder of ours outside the cluster, also one that a crash left."""
    if folder.parent == Path("/tmp") and folder.name.startswith(_SOCKET_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def _end_with(parent: int) -> Callable[[], None]:
    """Runs in the child, after the change of account, which would clear the setting."""

    def ask_the_kernel() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel


def _wait(process: subprocess.Popen[bytes], seconds: float | None) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
