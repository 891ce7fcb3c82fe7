"""The README's first session: paste what `cachesvc up --demo` prints, and see MISS, then HIT."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.stack import COMMAND, Up, alive, clean_environment, descendants, eventually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_pasting_what_up_prints_shows_a_miss_then_a_hit_then_a_semantic_hit(
    tmp_path: Path,
) -> None:
    with Up(tmp_path / "data", "--demo") as up:
        pasted = [line.strip() for line in up.banner.splitlines() if line.startswith("  curl ")]
        assert len(pasted) == 3
        replies = []
        for line in pasted:
            done = subprocess.run(
                ["/bin/sh", "-c", line], capture_output=True, text=True, check=True, timeout=30
            )
            replies.append(done.stdout)
            eventually(lambda: up.entries() == 1)
    statuses = [re.search(r"(?im)^x-ai-cache-status: (\w+)", reply) for reply in replies]
    assert [found and found[1] for found in statuses] == ["MISS", "HIT", "HIT"]
    tiers = [re.search(r"(?im)^x-ai-cache-tier: (\w+)", reply) for reply in replies]
    assert [found and found[1] for found in tiers] == [None, "exact", "semantic"]
    similarity = re.search(r"(?im)^x-ai-cache-similarity: (0\.9\d\d\d)\s*$", replies[2])
    assert similarity is not None
    bodies = [reply.replace("\r\n", "\n").partition("\n\n")[2] for reply in replies]
    assert bodies[0] == bodies[1] == bodies[2]
    assert "demo upstream, not a model" in bodies[0]


def test_up_stops_everything_and_a_second_start_finds_what_the_first_kept(tmp_path: Path) -> None:
    import httpx

    def ask(up: Up) -> str:
        body = {"model": "m", "messages": [{"role": "user", "content": "Does it last?"}]}
        reply = httpx.post(f"{up.proxy}/v1/chat/completions", json=body, timeout=30)
        assert reply.status_code == 200
        return reply.headers["x-ai-cache-status"]

    first = Up(tmp_path / "data", "--demo")
    below = descendants(first.process.pid)
    assert len(below) > 4
    assert ask(first) == "MISS"
    eventually(lambda: first.entries() == 1)
    assert ask(first) == "HIT"
    code, seconds = first.stop(signal.SIGINT)
    assert code == 0
    assert seconds < 5
    assert not [pid for pid in below if alive(pid)]
    with Up(tmp_path / "data", "--demo") as second:
        assert ask(second) == "HIT"


def test_after_kill_9_nothing_stays_behind_and_the_next_start_works(tmp_path: Path) -> None:
    first = Up(tmp_path / "data", "--demo")
    below = descendants(first.process.pid)
    first.stop(signal.SIGKILL)
    eventually(lambda: not [pid for pid in below if alive(pid)])
    with Up(tmp_path / "data", "--demo") as second:
        second.wait_ready()


def test_a_second_up_on_one_data_directory_is_told_so_in_one_line(tmp_path: Path) -> None:
    with Up(tmp_path / "data", "--demo"):
        done = subprocess.run(
            [COMMAND, "up", "--demo", "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=clean_environment(),
        )
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["service", "proxy", "demo", "postgres"])
def test_what_dies_is_started_again(tmp_path: Path, kind: str) -> None:
    import os

    import httpx

    body = {"model": "m", "messages": [{"role": "user", "content": f"Who restarts the {kind}?"}]}

    def asked(up: Up) -> str:
        try:
            reply = httpx.post(f"{up.proxy}/v1/chat/completions", json=body, timeout=30)
        except httpx.TransportError:
            return ""
        return str(reply.headers.get("x-ai-cache-status")) if reply.status_code == 200 else ""

    with Up(tmp_path / "data", "--demo") as up:
        eventually(lambda: asked(up) == "HIT")
        before = up.part(kind)
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: not alive(before))
        eventually(lambda: before not in up.parts(kind) and len(up.parts(kind)) == 1, 15)
        eventually(lambda: asked(up) == "HIT", 15)
        assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (("--upstream", "https://host/v1"), {}, "proxy.upstream"),
        (("--service-listen", "0.0.0.0:1"), {}, "service.listen"),
        ((), {"CACHESVC_PROXY_LOOKUP_BUDGET_MS": "0"}, "proxy.lookup_budget_ms"),
        (("--config", "/nowhere.toml"), {}, "/nowhere.toml"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], told: str
) -> None:
    done = subprocess.run(
        [COMMAND, "up", "--data-dir", str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=clean_environment(**environment),
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_demo_and_an_upstream_exclude_each_other(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "up", "--demo", "--upstream", "http://127.0.0.1:9", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=clean_environment(),
    )
    assert done.returncode == 2
    assert "--demo" in done.stderr
