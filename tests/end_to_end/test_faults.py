"""One part after the other fails under traffic, and no caller notices more than a miss."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.end_to_end.provider import EmbeddingProvider
from tests.end_to_end.stack import Up, children, eventually
from tests.end_to_end.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.alone

BUDGET_MS = 50
SLACK_MS = 10
PER_SECOND = 80  # enough that a p99 is more than one request

_runs = count(1)


@dataclass
class Traffic:
    """Questions at a steady pace from one client, half of them new; every reply is kept."""

    proxy: str
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    during: list[str] = field(default_factory=list)
    run: int = field(default_factory=lambda: next(_runs))
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Traffic:
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(30)

    def _run(self) -> None:
        with httpx.Client(base_url=self.proxy, timeout=20, trust_env=False) as client:
            number = 0
            while not self._stop.wait(1 / PER_SECOND):
                number += 1
                new = f"What is new about {self.run} {number}?"
                text = "What never changes?" if number % 2 else new
                self._ask(client, text)

    def _ask(self, client: httpx.Client, text: str) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        began = time.perf_counter()
        try:
            reply = client.post("/v1/chat/completions", json=body)
        except httpx.TransportError as exc:
            self.failures.append(repr(exc))
            return
        self.seconds.append(time.perf_counter() - began)
        self.statuses.append(reply.headers.get("x-ai-cache-status", "none"))
        if reply.status_code != 200 or "choices" not in reply.json():
            self.failures.append(f"{reply.status_code}: {reply.text[:100]}")

    def hits_again(self) -> bool:
        return "HIT" in self.statuses[-4:]


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def up(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("up"), "--upstream", upstream.url) as running:
        yield running


@pytest.fixture(scope="module")
def provider() -> Iterator[EmbeddingProvider]:
    with EmbeddingProvider() as running:
        yield running


@pytest.fixture(scope="module")
def up_embedding_remotely(
    upstream: ScriptedUpstream,
    provider: EmbeddingProvider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Up]:
    environment = {
        "CACHESVC_EMBED_PROVIDER": "openai",
        "CACHESVC_EMBED_BASE_URL": provider.base_url,
        "CACHESVC_EMBED_API_KEY": "sk-embed",
        "CACHESVC_PROXY_LOOKUP_BUDGET_MS": str(BUDGET_MS),
    }
    folder = tmp_path_factory.mktemp("up")
    with Up(folder, "--upstream", upstream.url, environment=environment) as running:
        yield running


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def check(
    up: Up, fault: Callable[[], None], heal: Callable[[], None], *, seconds: float = 3
) -> Traffic:
    """Run traffic, break something, heal it, and wait until hits come again."""
    with Traffic(up.proxy) as traffic:
        eventually(traffic.hits_again)
        eventually(lambda: len(traffic.seconds) > 2 * PER_SECOND)
        quiet = percentile(traffic.seconds, 0.5)
        since = len(traffic.seconds)
        fault()
        time.sleep(seconds)  # the fault lasts; nothing tells when it has lasted long enough
        heal()
        until = len(traffic.seconds)
        traffic.during = traffic.statuses[since:until]
        traffic.statuses.clear()
        eventually(traffic.hits_again, 15)
    assert traffic.failures == []
    during = traffic.seconds[since:until]
    assert len(during) > PER_SECOND
    added_ms = (percentile(during, 0.99) - quiet) * 1000
    assert added_ms <= BUDGET_MS + SLACK_MS, f"p99 added {added_ms:.1f} ms"
    return traffic


def test_killing_the_service_costs_nobody_an_answer(up: Up) -> None:
    check(up, lambda: os.kill(up.part("service"), signal.SIGKILL), lambda: None)


def test_killing_postgres_costs_nobody_an_answer(up: Up) -> None:
    def kill_all() -> None:
        postmaster = up.part("postgres")
        for pid in (postmaster, *children(postmaster)):
            os.kill(pid, signal.SIGKILL)

    check(up, kill_all, lambda: None)


def test_a_frozen_postgres_costs_nobody_an_answer(up: Up) -> None:
    frozen: list[int] = []

    def freeze() -> None:
        postmaster = up.part("postgres")
        for pid in (postmaster, *children(postmaster)):
            os.kill(pid, signal.SIGSTOP)
            frozen.append(pid)

    def thaw() -> None:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    check(up, freeze, thaw)


@pytest.mark.parametrize("mode", ["refuse", "hang", "error", "garbage"])
def test_a_broken_embedder_costs_nobody_an_answer(
    up_embedding_remotely: Up, provider: EmbeddingProvider, mode: str
) -> None:
    traffic = check(
        up_embedding_remotely, lambda: provider.turn(mode), lambda: provider.turn("fine")
    )
    # An exact hit needs no embedder; and the others were really asked of the broken one.
    assert traffic.during.count("HIT") > 0
    assert traffic.during.count("MISS") > 0
