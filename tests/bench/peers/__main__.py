"""`make bench-peers`: one table of all systems, and what was aimed at beside what came.

`--quick` does less of everything (2 minutes); `--only WORD` measures the systems whose name has the
word. Systems run one at a time; the processors are shared with the load and the stub.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.bench.peers.measure import QUICK, Measuring, Plan, Result
from tests.bench.peers.report import show
from tests.bench.peers.systems import System, missing, systems


def main() -> None:
    arguments = _arguments()
    if absent := missing():
        sys.exit(f"not installed in .clients: {', '.join(absent)}; run: make bench-peers")
    plan = QUICK if arguments.quick else Plan()
    stub = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.peers.stub"], stdout=subprocess.PIPE, text=True
    )
    assert stub.stdout is not None
    began = time.monotonic()
    results: list[Result] = []
    load = os.getloadavg()[0]
    try:
        url = stub.stdout.readline().strip()
        for system in systems():
            if arguments.only in system.name:
                results.append(_measured(system, url, plan))
    finally:
        stub.terminate()
        stub.wait(10)
        stub.stdout.close()
    show(results, plan, seconds=time.monotonic() - began, load=load)


def _measured(system: System, stub: str, plan: Plan) -> Result:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        # Postgres may run as another user, who must be able to reach its directory.
        Path(folder).chmod(0o755)
        with system.start(Path(folder) / "run", stub):
            started = time.monotonic() - began
            result = uvloop.run(Measuring(system, stub, plan).all())
    took = time.monotonic() - began
    print(f"{system.name}: {took:.0f} s, of which {started:.0f} s to start", file=sys.stderr)
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, 2 minutes")
    parser.add_argument("--only", default="", metavar="WORD", help="systems whose name has it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
