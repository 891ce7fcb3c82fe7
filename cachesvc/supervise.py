"""Keeps the parts of `cachesvc up` running: starts them in order, restarts what dies, stops all."""

from __future__ import annotations

import logging
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol

import msgspec

from cachesvc.errors import CacheError, StartError
from cachesvc.part import Ready, Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

log = logging.getLogger("cachesvc.up")

FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 5.0
_STEADY_SECONDS = 10.0  # after this long alive, the next death starts from the first backoff
_POLL_SECONDS = 0.05
_TERM_SECONDS = 3.0  # then SIGKILL: everything must be gone within 5 s


class Supervised(Protocol):
    """Something that runs beside us."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Start it and return once it can work. Raises CacheError."""

    def alive(self) -> bool: ...

    def stop(self) -> None:
        """Stop it for good; safe to call twice."""


@dataclass
class Part:
    """A part of ours in its own process; `work` is made anew at every start."""

    name: str
    kind: str
    work: Callable[[], Work]
    started: Callable[[list[str]], None]
    start_seconds: float = 60.0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process and wait until it accepts. Raises StartError when it does not."""
        process = subprocess.Popen(
            [sys.executable, "-m", "cachesvc.part", self.kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal reaches the supervisor alone
        )
        self._process = process
        try:
            with _opened(process.stdin) as stdin:
                stdin.write(msgspec.json.encode(self.work()))
        except BrokenPipeError:
            pass  # it died at once; the missing ready line below says so
        with _opened(process.stdout) as stdout:
            readable, _, _ = select.select([stdout], [], [], self.start_seconds)
            line = stdout.readline() if readable else b""
        if not readable:
            process.kill()
            process.wait()
            raise StartError(f"{self.name} was not ready after {self.start_seconds:.0f} s")
        if not line:
            code = process.wait()
            raise StartError(f"{self.name} did not start (exit code {code}); see the line above")
        self.started(msgspec.json.decode(line, type=Ready).urls)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Tell it to stop, without waiting for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        if self._process is None:
            return
        if self.alive():
            self.ask_to_stop()
            try:
                self._process.wait(_TERM_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


@dataclass
class _Watch:
    """When a supervised thing may start again."""

    thing: Supervised
    backoff: float = FIRST_BACKOFF_SECONDS
    since: float = field(default_factory=time.monotonic)
    due: float | None = None


class Supervisor:
    """Runs things in the order given and stops them in reverse."""

    def __init__(self) -> None:
        self._watched: list[_Watch] = []
        self._stopping = False

    def __enter__(self) -> Supervisor:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def stopping(self) -> bool:
        return self._stopping

    def start(self, thing: Supervised) -> None:
        """Start a thing and watch it from now on. Raises CacheError."""
        self._watched.append(_Watch(thing))
        thing.start()
        self._watched[-1].since = time.monotonic()

    def watch(self) -> None:
        """Restart what dies, until a signal asks to stop."""
        while not self._stopping:
            for watch in self._watched:
                self._tend(watch, time.monotonic())
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop everything, last started first; bounded at about 5 s in all."""
        self._stopping = True
        for watch in self._watched[::-1]:
            if isinstance(watch.thing, Part):
                # All parts drain at the same time; each is then waited for in turn.
                watch.thing.ask_to_stop()
        for watch in self._watched[::-1]:
            watch.thing.stop()

    def _tend(self, watch: _Watch, now: float) -> None:
        if watch.thing.alive() or self._stopping:
            return
        if watch.due is None:
            if now - watch.since > _STEADY_SECONDS:
                watch.backoff = FIRST_BACKOFF_SECONDS
            watch.due = now + watch.backoff
            log.warning("%s died; starting it again in %.1f s", watch.thing.name, watch.backoff)
            watch.backoff = min(watch.backoff * 2, LAST_BACKOFF_SECONDS)
        if now < watch.due:
            return
        watch.due = None
        try:
            watch.thing.start()
        except CacheError as exc:
            log.warning("%s: %s", watch.thing.name, exc.message)
        else:
            log.warning("%s is back", watch.thing.name)
        watch.since = time.monotonic()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # A part that is being waited for at its start must not hold up the stop.
        if not self._stopping:
            self._stopping = True
            for watch in self._watched:
                if isinstance(watch.thing, Part):
                    watch.thing.ask_to_stop()


def _opened(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise StartError("a part has no pipe")
    return stream
