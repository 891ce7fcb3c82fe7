"""Programs that a recipe starts beside cachesvc: started on free ports, awaited, stopped."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx

from tests.end_to_end.stack import clean_environment, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def changed(text: str, changes: Mapping[str, str]) -> str:
    """The text of a recipe with its addresses replaced; each must stand in it."""
    for old, new in changes.items():
        assert old in text, f"the recipe does not say {old!r}"
        text = text.replace(old, new)
    return text


class Program:
    """A running program; `log` is what it wrote."""

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        folder: Path,
        answers: str | None = None,
        environment: Mapping[str, str] | None = None,
        patience: float = 30,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment(**(environment or {})),
            )
        if answers is not None:
            try:
                eventually(lambda: self._answers(answers), patience)
            except BaseException:
                self.stop()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def stop(self) -> int:
        """Ask it to stop; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _answers(self, url: str) -> bool:
        assert self.process.poll() is None, f"it ended: {self.log}"
        try:
            return httpx.get(url, timeout=5, trust_env=False).status_code < 500
        except httpx.TransportError:
            return False
