"""The service in a process of its own: what it loads, what it weighs, how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cachesvc.part import Ready, Work
from cachesvc.settings import Service, Settings
from tests.service.serving import Api

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREIGN = {"sqlalchemy", "alembic", "onnxruntime", "onnx", "tokenizers", "aiohttp", "httpx"}
MEGABYTES = 150


@contextmanager
def started(database_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    work = Work(
        Settings(service=Service(listen="127.0.0.1:0", database_url=database_url)),
        default_policy=True,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cachesvc.part", "service"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    with process, process.stdin as stdin:
        stdin.write(msgspec.json.encode(work))
        stdin.close()
        yield process, msgspec.json.decode(process.stdout.readline(), type=Ready).urls[0]
        process.terminate()


def resident_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def test_the_service_loads_no_model_no_migrations_and_no_client() -> None:
    code = "import sys, cachesvc.service.run; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert "asyncpg" in names
    assert names & FOREIGN == set()


def test_it_stays_small_under_load_and_stops_when_told(database_url: str) -> None:
    with started(database_url) as (process, url), closing(Api(url)) as api:
        policy = api.policy()

        def work(number: int) -> bool:
            vector = [float(number + 1), *([1.0] * 383)]
            key = f"{number:064x}"
            api.put(policy, exact_key=key, embedding=vector, response="x" * 10_000)
            return bool(api.lookup(policy, exact_key=key, embedding=vector)["hit"])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(300)))
        assert resident_megabytes(process.pid) < MEGABYTES
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
