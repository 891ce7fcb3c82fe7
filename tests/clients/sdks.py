"""The SDKs that are driven, each in an environment of its own, which `make clients` builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from types import TracebackType

Report: TypeAlias = "dict[str, dict[str, Any]]"

HERE = Path(__file__).parent
BUILT = HERE.parent.parent / ".clients"
PATIENCE_SECONDS = 60
_SET = {
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a price list when imported
    "NO_PROXY": "127.0.0.1",
    "PYTHONIOENCODING": "utf-8",
}

_LISTED = {
    "current": "requirements/current.txt",
    "previous": "requirements/previous.txt",
    "node": "node/package-lock.json",
}


@dataclass(frozen=True)
class Sdk:
    """An SDK, the environment it lives in (`current`, `previous` or `node`), and its driver."""

    name: str
    environment: str
    driver: str

    @property
    def missing(self) -> str | None:
        """Why it cannot be driven; None when it can."""
        if self.environment == "node" and not shutil.which("node"):
            return "node is not installed"
        stamp = BUILT / f"{self.environment}.ready"
        source = HERE / _LISTED[self.environment]
        fresh = stamp.exists() and stamp.stat().st_mtime >= source.stat().st_mtime
        return None if fresh else "run: make clients"

    @property
    def credential(self) -> str:
        """The API key the driver sends, so that no two SDKs share answers."""
        return f"sk-{self.name}"

    @property
    def command(self) -> list[str]:
        if self.environment == "node":
            # The driver is a link, which finds the packages beside it, not beside its target.
            links = ("--preserve-symlinks", "--preserve-symlinks-main")
            return ["node", *links, str(BUILT / "node" / self.driver), self.name]
        python = BUILT / self.environment / "bin" / "python"
        return [str(python), str(HERE / "drivers" / self.driver), self.name]


SDKS = (
    Sdk("openai-3", "current", "openai_sdk.py"),
    Sdk("openai-2", "previous", "openai_sdk.py"),
    Sdk("anthropic", "current", "anthropic_sdk.py"),
    Sdk("langchain-openai", "current", "langchain_sdk.py"),
    Sdk("litellm", "previous", "litellm_sdk.py"),
    Sdk("ai", "node", "driver.mjs"),
)


class Driver:
    """A running driver: one process for all runs, since importing an SDK takes seconds."""

    def __init__(self, sdk: Sdk, home: Path) -> None:
        self.sdk = sdk
        self._log = (home / "stderr").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            sdk.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={"PATH": os.environ["PATH"], "HOME": str(home), **_SET},
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def run(self, url: str) -> Report:
        """All cases, once, against `url`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(url + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        assert line, f"the driver of {self.sdk.name} ended: {self._errors()}"
        report: Report = json.loads(line)
        return report

    def _errors(self) -> str:
        self._process.wait(10)
        self._log.seek(0)
        return self._log.read()[-4000:]
