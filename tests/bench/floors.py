"""What the service is measured against, in one process made as the service is.

`python -m tests.bench.floors DATABASE_URL` prints its URL and serves until it is told to stop:
POST /constant reads its body and replies with a constant; POST /one asks the database `select 1`
through the service's own pool first; POST /calls {"what", "count", "workers"} runs statements
without any HTTP and tells the figures.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
import numpy as np
import uvloop
from pgvector import HalfVector

from cachesvc.core.cells import cell_of
from cachesvc.edge.server import Listener, install_stop_signals, run
from cachesvc.embed.factory import create
from cachesvc.settings import Embed
from cachesvc.store.leaves import tend
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from tests.bench import questions, rows
from tests.bench.load import Figures, calls

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cachesvc.store.pool import Database

    Call = Callable[[int], Coroutine[Any, Any, object]]

POOL_SIZE = 8  # the service's default
REPLY = msgspec.msgpack.encode({"hit": True, "body": rows.BODY, "media_type": "text/plain"})
_HEADERS = [(b"content-type", b"application/msgpack"), (b"content-length", b"%d" % len(REPLY))]
_COLUMNS = (
    *("tenant", "id", "policy_id", "scope", "exact_key", "space", "dimensions", "partition"),
    *("prompt_hash", "embedding", "leaf", "body", "media_type", "prompt_text"),
    *("prompt_tokens", "completion_tokens", "model", "tags", "generation", "provenance"),
    *("created_at", "exact_expires_at", "semantic_expires_at"),
)
_VALUES = f"VALUES ({', '.join(f'${number + 1}' for number in range(len(_COLUMNS)))})"
# The usual semantic cache: one table, its vectors in one HNSW index.
_USUAL = (
    "CREATE TABLE usual (LIKE entries INCLUDING ALL)",
    f"INSERT INTO usual ({', '.join(_COLUMNS)}) SELECT {', '.join(_COLUMNS)} FROM entries",
    f"CREATE INDEX ON usual USING hnsw ((embedding::halfvec({rows.DIMENSIONS})) "
    f"halfvec_cosine_ops) WHERE dimensions = {rows.DIMENSIONS}",
)


class Recorder:
    """Stands where the pool is, to learn which statement a lookup would have run."""

    def __init__(self) -> None:
        self.query: tuple[Any, ...] = ()

    async def search(self, *query: Any) -> list[Any]:
        self.query = query
        raise LookupError

    rows = search


class Floors:
    """The app, over a pool like the service's."""

    def __init__(self, database: Database, data_dir: Path) -> None:
        self._database = database
        self._data_dir = data_dir
        self._store = PostgresStore(database)
        self._numbers = itertools.count(10**6)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        reply, headers = REPLY, _HEADERS
        if scope["path"] == "/one":
            await self._database.rows("select 1")
        elif scope["path"] == "/calls":
            reply = msgspec.json.encode(await self._calls(**msgspec.json.decode(body)))
            headers = [(b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    async def _calls(self, what: str, count: int, workers: int, start: int = 0) -> Figures:
        call = await self._call(what, count, start)
        return await calls(call, count=count, workers=workers)

    async def _call(self, what: str, count: int, start: int) -> Call:
        match what.split():
            case ["fill", partition]:
                vectors, base = rows.stored(partition), int(partition[:2]) * 10**5
                return lambda number: self._store.put(
                    rows.entry(partition, base + number, vectors[number].tobytes())
                )
            case ["settle"]:
                return lambda _: self._settle()
            case ["select"]:
                return lambda _: self._database.rows("select 1")
            case ["exact"]:
                exact = rows.exact(int(rows.LARGE[:2]) * 10**5)
                return lambda _: self._store.find_exact(exact)
            case ["nearest", partition]:
                asked = [rows.nearest(partition, vector) for vector in rows.asked(partition)]
                return lambda number: self._store.find_nearest(asked[number % len(asked)])
            case ["bare", partition]:
                recorded = [await _recorded(partition, each) for each in rows.asked(partition)]
                return lambda number: self._database.search(*recorded[number % len(recorded)])
            case ["plain", partition]:
                plain = [_plain(partition, each) for each in rows.asked(partition)]
                return lambda number: self._database.search(*plain[number % len(plain)])
            case ["insert", table]:
                made = [_record(next(self._numbers)) for _ in range(count)]
                insert = f"INSERT INTO {table} ({', '.join(_COLUMNS)}) {_VALUES}"
                return lambda number: self._database.row(insert, *made[number])
            case ["embed"]:
                embedder = create(Embed(), self._data_dir, lambda _: None)
                assert embedder is not None
                texts = questions.texts()
                return lambda number: embedder.embed(texts[start + number])
        raise ValueError(what)

    async def _settle(self) -> None:
        """What the service does bit by bit after the puts; and the usual table beside it."""
        while self._store.growing.crowded() is not None:
            await tend(self._database, self._store.growing)
        async with self._database.connection() as connection:
            await connection.execute("SET statement_timeout = 0")
            for statement in _USUAL:
                await connection.execute(statement, timeout=300)
            await connection.execute("RESET statement_timeout")


def _cell(partition: str) -> bytes:
    return cell_of(
        rows.TENANT, rows.POLICY, rows.SCOPE, rows.SPACE, rows.DIMENSIONS, bytes.fromhex(partition)
    )


async def _recorded(partition: str, vector: bytes) -> tuple[Any, ...]:
    """The statement and the values of a nearest lookup."""
    recorder = Recorder()
    store = PostgresStore(recorder)  # type: ignore[arg-type]
    store.growing.found(_cell(partition), split=partition == rows.LARGE)
    try:
        await store.find_nearest(rows.nearest(partition, vector))
    except LookupError:
        return recorder.query
    raise AssertionError("a nearest lookup asked nothing")


def _plain(partition: str, vector: bytes) -> tuple[Any, ...]:
    """The least that finds the same: all of a small cell compared, or a walk where it is large."""
    cell, size = _cell(partition), rows.DIMENSIONS
    compared = f"embedding::halfvec({size}) <=> $1::halfvec({size})"
    if partition == rows.SMALL:
        query = (
            f"SELECT * FROM (SELECT id, body, embedding, {compared} AS distance "
            "FROM entries WHERE tenant = $2 AND leaf = $3 AND semantic_expires_at > now() "
            "ORDER BY semantic_expires_at LIMIT 2000) small ORDER BY distance LIMIT 4"
        )
        return query, HalfVector(rows.nearest(partition, vector).vector), rows.TENANT, cell
    query = (
        f"SELECT id, body, embedding FROM usual WHERE dimensions = {size} AND tenant = $2 "
        f"AND partition = '\\x{partition}' AND semantic_expires_at > now() "
        f"ORDER BY {compared} LIMIT 4"
    )
    return query, HalfVector(rows.nearest(partition, vector).vector), rows.TENANT


def _record(number: int) -> tuple[Any, ...]:
    """A row as a put into the large partition would leave it, for _COLUMNS."""
    vector = np.random.default_rng(number).normal(size=rows.DIMENSIONS)
    partition = bytes.fromhex(rows.LARGE)
    cell = _cell(rows.LARGE)
    prompt, now = f"prompt {number}".encode(), datetime.now(timezone.utc)
    expires = now + timedelta(hours=1)
    return (
        *(rows.TENANT, uuid4(), rows.POLICY, rows.SCOPE, bytes.fromhex(rows.key_of(number))),
        *(rows.SPACE, rows.DIMENSIONS, partition, hashlib.sha256(prompt).digest()),
        *(HalfVector(vector / np.linalg.norm(vector)), cell),
        *(rows.BODY, "text/plain", prompt, 5, 50, "", [], 1, "", now, expires, expires),
    )


async def main() -> None:
    stop = asyncio.Event()
    install_stop_signals(asyncio.get_running_loop(), stop)
    database = await connect(sys.argv[1], size=POOL_SIZE, statement_timeout_ms=5000)
    try:
        listener = Listener(Floors(database, Path(sys.argv[2])), "127.0.0.1", 0, "floors")
        await run([listener], stop=stop, ready=lambda urls: print(*urls, flush=True))
    finally:
        await database.close()


if __name__ == "__main__":
    uvloop.run(main())
