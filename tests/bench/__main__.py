"""`make bench`: the proxy and the service, each beside its floor, in one run.

Every ratio compares two figures of this run, on this machine, under the same load generator,
which shares the processors with everything else. Rates are at 16 connections (semantic hits through
the proxy: 4), times at one.
"""

from __future__ import annotations

import asyncio
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import msgspec
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from cachesvc import wire
from cachesvc.core.vectors import read_vector
from cachesvc.store.base import ExactQuery, NearestQuery, Place
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from tests.bench import ratios
from tests.bench.load import Figures, calls, http, post
from tests.end_to_end.stack import Up

QUESTIONS = Path(__file__).parent.parent / "data" / "banking77.csv"
KEY, PARTITION, SPACE = "ab" * 32, "cd" * 32, "bench"
MSGPACK = "application/msgpack"
STORED = 1000  # vectors in the service's partition
MANY, FEW = 6000, 1000
CONNECTIONS = 16

if TYPE_CHECKING:
    from collections.abc import Callable

Row = tuple[str, Figures]


def question(text: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return msgspec.json.encode(body)


async def proxy_rows(proxy: str, upstream: str, starlette: str) -> tuple[list[Row], list[float]]:
    """Figures of the proxy, and the miss overheads (ms), pair by pair."""
    path = "/v1/chat/completions"
    constant = post(upstream + path, question("x"))
    known = post(proxy + path, question("What is the capital of France?"))
    rows: list[Row] = []
    await http(proxy, lambda _: known, count=1, connections=1, expect="x-ai-cache-status")
    await asyncio.sleep(0.3)  # the put

    async def measure(
        name: str,
        url: str,
        call: Callable[[int], bytes],
        expect: str,
        count: int,
        connections: int = CONNECTIONS,
    ) -> None:
        one = await http(url, call, count=count // 4, connections=1, expect=expect)
        many = await http(
            url,
            lambda number: call(count + number),
            count=count,
            connections=connections,
            expect=expect,
        )
        rows.append((name, Figures(many.per_second, one.p50, one.p99)))

    await measure("constant reply, bare ASGI", upstream, lambda _: constant, "Paris", MANY)
    framed = post(starlette + path, question("x"))
    await measure("constant reply, Starlette", starlette, lambda _: framed, "Paris", MANY)
    await measure("proxy, exact hit", proxy, lambda _: known, "tier: exact", MANY)

    def rephrased(number: int) -> bytes:
        # White space alone: another exact key, the same tokens.
        spaces = " " * (number % 60 + 1) + "\t" * (number // 60 + 1)
        return post(proxy + path, question("What is the capital of France?" + spaces))

    # Sixteen at once would queue for the embedder beyond the budget, which makes them misses.
    await measure("proxy, semantic hit", proxy, rephrased, "tier: semantic", FEW, 4)
    overheads = await miss_overheads(proxy + path, upstream + path)
    return rows, overheads


async def miss_overheads(proxy: str, upstream: str) -> list[float]:
    """Milliseconds that a miss adds to the bare upstream: 20 rounds of 15 + 15 real questions."""
    with QUESTIONS.open(encoding="utf-8") as file:
        questions = [row["text"] for row in csv.DictReader(file)]
    bare = post(upstream, question("x"))
    added = []
    for turn in range(20):

        def unknown(number: int, turn: int = turn) -> bytes:
            # One in sixteen is near an earlier one, so a hit; the median is a miss.
            return post(proxy, question(questions[turn * 15 + number]))

        floor = await http(upstream, lambda _: bare, count=15, connections=1, expect="Paris")
        missed = await http(proxy, unknown, count=15, connections=1, expect="x-ai-cache-status")
        added.append(missed.p50 - floor.p50)
    return added


async def service_rows(service: str, database_url: str, constant: str) -> list[Row]:
    """Figures of the service beside a constant reply, and beside the same SQL without HTTP."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(STORED, 384)).astype("<f4")
    async with httpx.AsyncClient(base_url=service, trust_env=False) as client:
        await client.put("/policies/bench", json={"sharing": "shared"})
        for index, vector in enumerate(vectors):
            put = wire.PutRequest(
                policy_id="bench",
                body=b"x" * 500,
                media_type="text/plain",
                embedding=vector.tobytes(),
                exact_key=KEY if index == 0 else f"{index:064x}",
                partition=PARTITION,
                space=SPACE,
            )
            reply = await client.post(
                "/cache/put", content=msgspec.msgpack.encode(put), headers={"content-type": MSGPACK}
            )
            reply.raise_for_status()
    return await _lookups(service, database_url, constant, vectors[0].tobytes())


async def _lookups(
    service: str,
    database_url: str,
    constant: str,
    vector: bytes,
) -> list[Row]:
    url = f"{service}/cache/lookup"
    exact = wire.LookupRequest(policy_id="bench", exact_key=KEY)
    nearest = wire.LookupRequest(
        policy_id="bench", embedding=vector, partition=PARTITION, space=SPACE
    )
    place = Place("default", "bench", "")
    exact_query = ExactQuery(place, bytes.fromhex(KEY))
    unit = read_vector(vector)
    nearest_query = NearestQuery(place, bytes.fromhex(PARTITION), SPACE, unit)
    bare = post(f"{constant}/x", b"{}")
    rows = [("constant reply, bare ASGI", await _rate(constant, bare, "Paris"))]
    database = await connect(database_url, size=8, statement_timeout_ms=5000)
    store = PostgresStore(database)
    try:
        for name, request, call in (
            ("exact", exact, lambda _: store.find_exact(exact_query)),
            (f"semantic among {STORED:,}", nearest, lambda _: store.find_nearest(nearest_query)),
        ):
            body = post(url, msgspec.msgpack.encode(request), MSGPACK, f"Accept: {MSGPACK}")
            rows.append((f"service, {name}", await _rate(service, body, "text/plain")))
            floor = await calls(call, count=MANY // 2, workers=CONNECTIONS)
            alone = await calls(call, count=FEW, workers=1)
            rows.append((f"same SQL, {name}", Figures(floor.per_second, alone.p50, alone.p99)))
    finally:
        await database.close()
    return rows


async def _rate(url: str, request: bytes, expect: str) -> Figures:
    one = await http(url, lambda _: request, count=FEW, connections=1, expect=expect)
    many = await http(url, lambda _: request, count=MANY, connections=CONNECTIONS, expect=expect)
    return Figures(many.per_second, one.p50, one.p99)


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def show(title: str, rows: list[Row]) -> None:
    table = Table("what", "per s", "ratio", "p50 ms", "p99 ms", title=title)
    floor = rows[0][1]
    for name, figures in rows:
        ratio = figures.per_second / floor.per_second
        table.add_row(
            name,
            f"{figures.per_second:,.0f}",
            f"{ratio:.2f}",
            f"{figures.p50:.2f}",
            f"{figures.p99:.2f}",
        )
    Console(width=100).print(table)


def verdicts(found: list[tuple[str, float, str, float]]) -> None:
    table = Table("target", "measured", "bound", "met", title="targets")
    for name, value, sign, bound in found:
        met = value <= bound if sign == "≤" else value >= bound
        table.add_row(name, f"{value:,.2f}", f"{sign} {bound:g}", "yes" if met else "NO")
    Console(width=100).print(table)


async def measure(up: Up, upstream: str, starlette: str, data_dir: Path) -> None:
    proxy, overheads = await proxy_rows(up.proxy, upstream, starlette)
    show("proxy", proxy)
    overhead = statistics.median(overheads)
    Console().print(f"a miss adds {overhead:.2f} ms (p50 of 20 interleaved rounds)\n")
    url = EmbeddedPostgres.running_url(data_dir)
    assert url is not None
    service = await service_rows(up.service, url, upstream)
    show("service", service)
    figures = dict(proxy) | dict(service)
    hits = figures["proxy, exact hit"].per_second
    sql, over_http = "same SQL, ", "service, "
    semantic = f"semantic among {STORED:,}"
    for name in ("exact", semantic):
        share = figures[over_http + name].per_second / figures[sql + name].per_second
        Console().print(f"service, {name}: {share:.2f} of the same SQL without HTTP")
    verdicts(
        [
            ("semantic hit through the proxy, p50 ms", figures["proxy, semantic hit"].p50, "≤", 5),
            ("miss overhead, p50 ms", overhead, "≤", 5),
            (
                "proxy exact hits, of the bare constant reply",
                hits / proxy[0][1].per_second,
                "≥",
                0.10,
            ),
            ("proxy exact hits, of Starlette's constant", hits / proxy[1][1].per_second, "≥", 0.10),
            ("service RSS, MB", rss_mb(up.part("service")), "≤", 150),
            ("proxy RSS, MB", rss_mb(up.part("proxy")), "≤", 300),
            ("cachesvc up ready, s", up.ready_seconds, "≤", 5),
        ]
    )


def main() -> None:
    constant = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.constant"], stdout=subprocess.PIPE, text=True
    )
    assert constant.stdout is not None
    upstream, starlette = constant.stdout.readline().split()
    try:
        with tempfile.TemporaryDirectory() as folder:
            data_dir = Path(folder) / "data"
            Up(data_dir, "--upstream", upstream).stop()  # the first start makes the database
            with Up(data_dir, "--upstream", upstream) as up:
                uvloop.run(measure(up, upstream, starlette, data_dir))
    finally:
        constant.terminate()
        constant.wait(10)
        constant.stdout.close()
    ratios.main(long="--long" in sys.argv)


if __name__ == "__main__":
    main()
