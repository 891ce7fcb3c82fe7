"""`cachesvc up` as a user runs it: the installed command, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

COMMAND = str(Path(sys.executable).parent / "cachesvc")
_URL = re.compile(r"^  (service|admin|proxy) +(https?://\S+)", re.MULTILINE)


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of a user who has set nothing of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CACHESVC_")}
    return kept | extra


class Up:
    """A running `cachesvc up`; `urls` are those its banner tells."""

    def __init__(
        self, data_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [
                *(COMMAND, "up", "--data-dir", str(data_dir)),
                *("--service-listen", "127.0.0.1:0", "--proxy-listen", "127.0.0.1:0"),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**(environment or {})),
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        self.banner = self._read_banner()
        self.ready_seconds = time.monotonic() - self.started
        self.urls: dict[str, str] = dict(_URL.findall(self.banner))

    def __enter__(self) -> Up:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def proxy(self) -> str:
        return self.urls["proxy"]

    @property
    def service(self) -> str:
        return self.urls["service"]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Stop it; the exit code, and how many seconds it took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(5)
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
        return code, time.monotonic() - began

    def part(self, kind: str) -> int:
        """The process id of the running service, proxy, demo or postgres(master)."""
        (pid,) = self.parts(kind)
        return pid

    def parts(self, kind: str) -> list[int]:
        """The process ids of one kind; none while it is dead."""
        found = []
        for pid in children(self.process.pid):
            with contextlib.suppress(OSError):  # it ends while we look
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if kind.encode() in words or (
                    kind == "postgres" and words[0].endswith(b"/postgres")
                ):
                    found.append(pid)
        return found

    def wait_ready(self, seconds: float = 20) -> None:
        """Wait until the service can answer from the database."""
        eventually(lambda: _status(f"{self.service}/readyz") == 200, seconds)

    def entries(self) -> int:
        """How many entries the service holds: a put is seen here before anything may rely on it."""
        stats = httpx.get(f"{self.service}/stats", timeout=10, trust_env=False).json()
        return sum(policy["entries"] for policy in stats["policies"])

    def _read_banner(self) -> str:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                return "".join(lines)
        self.process.wait()
        self._reader.join(5)
        raise AssertionError(f"cachesvc up ended: {''.join(self.errors)}")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)


def children(pid: int) -> list[int]:
    """The processes started by `pid`, those which run now."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    below = children(pid)
    return below + [inner for child in below for inner in descendants(child)]


def alive(pid: int) -> bool:
    """True while the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def eventually(holds: Callable[[], bool], seconds: float = 10, every: float = 0.05) -> None:
    """Wait until `holds()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"did not hold within {seconds} s"
        time.sleep(every)


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code
    except httpx.TransportError:
        return 0
