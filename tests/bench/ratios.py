"""The service beside its floors, as ratios: `make bench` ends with them.

`python -m tests.bench.ratios [--long]`. Each ratio is of medians of turns taken one after the other
(floor, ours, floor, ours, …) in one run, at 16 connections from this process, which serves nothing.
`--long` looks up 10^6 times for the memory row, else 10^5.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from cachesvc import wire
from tests.bench import questions, rows
from tests.bench.hammer import hammer
from tests.bench.load import Figures, post
from tests.bench.parts import CONNECTIONS, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TURNS = 5
SECONDS = 1.0
NEW_WORDINGS = 16_000  # more than can be asked in a turn
PUTS = 400  # of each side in a turn
ROUNDS = 15  # of the proxy's overhead, each of ASKED questions
ASKED = 15
MSGPACK = "application/msgpack"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Row:
    """A figure beside its floor. `ratio` is met where it is at least (at most) `bound`."""

    name: str
    floor: str
    ours: str
    ratio: float
    bound: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.bound is None:
            return ""
        met = self.ratio <= self.bound if self.at_most else self.ratio >= self.bound
        return "PASS" if met else "BEHIND"


def in_turns(floor: Callable[[], Figures], ours: Callable[[], Figures]) -> tuple[Figures, Figures]:
    """Medians of TURNS figures of each."""
    floor(), ours()  # both warm
    pairs = [(floor(), ours()) for _ in range(TURNS)]
    return _median([a for a, _ in pairs]), _median([b for _, b in pairs])


def _median(figures: list[Figures]) -> Figures:
    return Figures(
        *(
            statistics.median(getattr(each, name) for each in figures)
            for name in ("per_second", "p50", "p99")
        )
    )


def rates(
    name: str, floor: Callable[[], Figures], ours: Callable[[], Figures], bound: float | None
) -> Row:
    a, b = in_turns(floor, ours)
    told = [f"{each.per_second:,.0f}/s" for each in (a, b)]
    return Row(name, told[0], told[1], b.per_second / a.per_second, bound)


def send(url: str, path: str, *bodies: bytes, expect: bytes = b"", **more: float) -> Figures:
    """Hammer one path with these bodies, for SECONDS unless told otherwise."""
    accept = f"Accept: {MSGPACK}"
    requests = [post(url + path, body, MSGPACK, accept) for body in bodies]
    given = {"connections": CONNECTIONS, "seconds": SECONDS} | more
    return hammer(url, requests, expect=expect, **given)  # type: ignore[arg-type]


def exact_lookup() -> bytes:
    key = rows.key_of(int(rows.LARGE[:2]) * 10**5)
    asked = wire.LookupRequest(policy_id=rows.POLICY, scope=rows.SCOPE, exact_key=key)
    return msgspec.msgpack.encode(asked)


def semantic_lookups(partition: str, vectors: list[bytes] | None = None) -> list[bytes]:
    return [
        msgspec.msgpack.encode(
            wire.LookupRequest(
                policy_id=rows.POLICY,
                scope=rows.SCOPE,
                embedding=vector,
                partition=partition,
                space=rows.SPACE,
            )
        )
        for vector in vectors or rows.asked(partition)
    ]


def exact_rows(stack: Stack) -> Iterator[Row]:
    """Beside handlers as they are written; and beside the least that our own server can do."""
    body, told = exact_lookup(), b"text/plain"
    for ours, url, what, floor, bound in (
        ("1 exact hit from memory", stack.service, "constant reply", "/constant", 0.50),
        ("2 exact hit from Postgres", stack.cold, "`select 1`", "/one", 0.75),
    ):
        for server, handlers, aimed in (
            ("Starlette on uvicorn", stack.plain, bound),
            ("bare, our server", stack.floors, None),
        ):
            yield rates(
                f"{ours} / {what}, {server}",
                partial(send, handlers, floor, body, expect=told),
                partial(send, url, "/cache/lookup", body, expect=told),
                aimed,
            )


def semantic_rows(stack: Stack) -> Iterator[Row]:
    for name, partition, bound in (
        (f"by leaves, {rows.SIZES[rows.LARGE]:,} rows", rows.LARGE, 0.85),
        (f"scanned, {rows.SIZES[rows.SMALL]} rows", rows.SMALL, 0.50),
    ):
        bodies = semantic_lookups(partition)

        def ours(bodies: list[bytes] = bodies) -> Figures:
            return send(stack.cold, "/cache/lookup", *bodies, expect=b"semantic")

        def floor(what: str, partition: str = partition) -> Figures:
            count = 1200 if partition == rows.LARGE else 4000
            return stack.calls(f"{what} {partition}", count=count)

        yield rates(f"3 semantic, {name} / same SQL", lambda: floor("bare"), ours, bound)
        plain = "HNSW in SQL" if partition == rows.LARGE else "plainest SQL"
        yield rates(f"3 semantic, {name} / {plain}", lambda: floor("plain"), ours, None)


def memory_rows(stack: Stack) -> Iterator[Row]:
    """The same partitions as the service comes: with a hot tier. No vector is asked twice."""
    seeds = itertools.count(10)
    for partition, count, bound in ((rows.LARGE, 1200, 0.85), (rows.SMALL, 4000, 0.50)):

        def ours(partition: str = partition) -> Figures:
            asked = rows.asked(partition, NEW_WORDINGS, next(seeds))
            bodies = semantic_lookups(partition, asked)
            return send(stack.service, "/cache/lookup", *bodies, expect=b"semantic")

        floor = partial(stack.calls, f"bare {partition}", count=count)
        name = f"3 semantic, new wordings, {rows.SIZES[partition]:,} rows in memory / same SQL"
        yield rates(name, floor, ours, bound)


def put_rows(stack: Stack) -> Iterator[Row]:
    numbers = iter(range(10**7, 10**8))

    def put() -> bytes:
        number = next(numbers)
        vector = np.random.default_rng(number).normal(size=rows.DIMENSIONS).astype("<f4")
        return msgspec.msgpack.encode(
            wire.PutRequest(
                policy_id=rows.POLICY,
                scope=rows.SCOPE,
                body=rows.BODY,
                media_type="text/plain",
                embedding=vector.tobytes(),
                exact_key=rows.key_of(number),
                partition=rows.LARGE,
                space=rows.SPACE,
                prompt_text=f"prompt {number}",
            )
        )

    def ours() -> Figures:
        bodies = [put() for _ in range(PUTS + CONNECTIONS)]
        endless = float("inf")
        return send(
            stack.service, "/cache/put", *bodies, expect=b"stored", count=PUTS, seconds=endless
        )

    for table, name, bound in (
        ("usual", "an HNSW index in place", 0.80),
        ("entries", "the same table", None),
    ):
        floor = partial(stack.calls, f"insert {table}", count=PUTS)
        yield rates(f"5 puts / bare inserts, {name}", floor, ours, bound)


def overhead_row(stack: Stack) -> Row:
    """What a miss adds to the bare upstream, in turns with what it is made of."""
    texts = questions.texts()
    bare = post(stack.upstream + CHAT, _question("x"))
    lookups = semantic_lookups(rows.LARGE)
    added, parts = [], []
    for turn in range(ROUNDS + 1):
        start = turn * ASKED
        asked = [post(stack.proxy + CHAT, _question(text)) for text in texts[start : start + ASKED]]
        floor = hammer(stack.upstream, [bare], connections=1, count=ASKED)
        # Those near to an earlier one are hits; the median is a miss.
        missed = hammer(stack.proxy, asked, connections=1, count=ASKED)
        embedded = stack.calls("embed", count=ASKED, workers=1, start=start)
        looked = send(stack.cold, "/cache/lookup", *lookups[:ASKED], connections=1, count=ASKED)
        if turn:  # the first is for warming up
            added.append(missed.p50 - floor.p50)
            parts.append((embedded.p50, looked.p50))
    embed, lookup = (statistics.median(part[n] for part in parts) for n in (0, 1))
    overhead = statistics.median(added)
    floor_told = f"{embed:.2f} + {lookup:.2f} + 1.50 ms"
    ratio = overhead / (embed + lookup + 1.5)
    name = "4 proxy miss overhead / embed + lookup + 1.5 ms"
    return Row(name, floor_told, f"{overhead:.2f} ms", ratio, 1.0, at_most=True)


def memory_row(stack: Stack, lookups: int) -> Row:
    """RSS of the service from its 20,000th lookup on: hits of both tiers, and misses."""
    far = [np.random.default_rng(n).normal(size=384).astype("<f4").tobytes() for n in range(100)]
    bodies = (
        semantic_lookups(rows.SMALL) + semantic_lookups(rows.SMALL, far) + [exact_lookup()] * 200
    )

    def some(count: int) -> None:
        send(stack.service, "/cache/lookup", *bodies, count=count, seconds=float("inf"))

    some(20_000)
    start = _rss_mb(stack.service_pid)
    some(lookups)
    end = _rss_mb(stack.service_pid)
    name = f"6 service RSS after {lookups:,} lookups / before"
    return Row(name, f"{start:.1f} MB", f"{end:.1f} MB", end / start, 1.05, at_most=True)


def _question(text: str) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": text}]})


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def show(found: list[Row], load: float) -> None:
    title = f"ratios (load average {load:.1f} before, {os.getloadavg()[0]:.1f} after)"
    table = Table("what", "floor", "ours", "ratio", "bound", "", title=title)
    for row in found:
        sign = "≤" if row.at_most else "≥"
        bound = "" if row.bound is None else f"{sign} {row.bound:.2f}"
        table.add_row(row.name, row.floor, row.ours, f"{row.ratio:.2f}", bound, row.verdict)
    Console(width=130).print(table)


def main(*, long: bool = False) -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ratios-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        parts = Stack(Path(folder), stack)
        for partition, size in rows.SIZES.items():
            parts.calls(f"fill {partition}", count=size)
        parts.calls("settle", count=1)
        found = [*exact_rows(parts), *semantic_rows(parts), *memory_rows(parts)]
        found += [overhead_row(parts), *put_rows(parts)]
        found.append(memory_row(parts, 10**6 if long else 10**5))
    show(found, load)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ratios", description=__doc__)
    parser.add_argument("--long", action="store_true", help="10^6 lookups for the memory row")
    main(long=parser.parse_args().long)
