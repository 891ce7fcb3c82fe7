"""The processes that the ratios are measured on."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import msgspec

from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import migrate_in_subprocess
from tests.bench import rows
from tests.bench.load import Figures
from tests.deploy.processes import ROOT, Program, free_port
from tests.end_to_end.stack import COMMAND

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

CONNECTIONS = 16


class Stack:
    """Postgres, the service with and without its hot tier, two floors, the proxy, an upstream."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        server = EmbeddedPostgres(folder / "data")
        server.start()
        stack.callback(server.stop)
        migrate_in_subprocess(server.url)
        self._url = server.url
        self.service, self.service_pid = self._serve("service")
        self.cold, _ = self._serve("cold", CACHESVC_SERVICE_HOT_BYTES="0")
        self.floors = self._printed("tests.bench.floors", server.url, str(folder / "floors"))[0]
        self.plain = self._plain()
        self.upstream = self._printed("tests.bench.constant")[0]
        httpx.put(f"{self.service}/policies/{rows.POLICY}", json={}, trust_env=False)
        self.proxy = self._proxy()

    def calls(
        self, what: str, *, count: int, workers: int = CONNECTIONS, start: int = 0
    ) -> Figures:
        """Figures of what needs no HTTP, run in the process of the floors."""
        asked = {"what": what, "count": count, "workers": workers, "start": start}
        reply = httpx.post(f"{self.floors}/calls", json=asked, timeout=300, trust_env=False)
        return msgspec.json.decode(reply.content, type=Figures)

    def _serve(self, name: str, **environment: str) -> tuple[str, int]:
        url = f"http://127.0.0.1:{free_port()}"
        words = [COMMAND, "serve", "--no-migrate", "--database-url", self._url]
        words += ["--service-listen", url.removeprefix("http://")]
        program = self._program(name, words, f"{url}/readyz", environment)
        return url, program.process.pid

    def _plain(self) -> str:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-m", "tests.bench.plain", str(port), self._url]
        self._program("plain", words, f"{url}/livez", {"PYTHONPATH": str(ROOT)})
        return url

    def _proxy(self) -> str:
        url = f"http://127.0.0.1:{free_port()}"
        words = [COMMAND, "proxy", "--proxy-listen", url.removeprefix("http://")]
        words += ["--upstream", self.upstream, "--service-url", self.service]
        secret = {"CACHESVC_PROXY_SCOPE_SECRET": "of the bench, and long enough for a secret"}
        self._program("proxy", words, f"{url}/readyz", secret)
        return url

    def _program(
        self, name: str, words: list[str], answers: str, environment: dict[str, str]
    ) -> Program:
        folder = self._folder / name
        return self._stack.enter_context(
            Program(words, folder=folder, answers=answers, environment=environment, patience=60)
        )

    def _printed(self, module: str, *arguments: str) -> list[str]:
        """Start a module of ours; the URLs on its first line."""
        words = [sys.executable, "-m", module, *arguments]
        process = self._stack.enter_context(
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        )
        self._stack.callback(process.terminate)
        assert process.stdout is not None
        return process.stdout.readline().split()
