"""A real service in a thread: its own event loop, a real port, a real database."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import msgspec
import uvloop

from cachesvc.edge.server import Listener, run
from cachesvc.errors import Unauthenticated
from cachesvc.service.app import create_app
from cachesvc.service.hot import HotGauges
from cachesvc.service.identity import LOCAL, Caller, Identities
from cachesvc.service.run import hot_store, open_notices
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Service, Settings
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.postgres_records import PostgresRecords

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from cachesvc.store.hot import HotStore

JSON = "application/json"
MESSAGEPACK = "application/msgpack"
KEY = "ab" * 32
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
_ids = (f"policy-{number}" for number in itertools.count(1))


class Named(Identities):
    """Test identities: the header `x-test-caller` names one of `CALLERS`; without it, LOCAL."""

    def __init__(self) -> None:
        super().__init__((), tls=False)

    def identify(self, scope: Mapping[str, Any]) -> Caller:
        named = dict(scope["headers"]).get(b"x-test-caller")
        if named is None:
            return LOCAL
        caller = CALLERS.get(named.decode())
        if caller is None:
            raise Unauthenticated("client certificate: its SAN is in no [[identity]]")
        return caller


CALLERS = {
    name: Caller(tenant, frozenset(roles), name)
    for name, tenant, roles in (
        ("acme", "acme", ["data", "admin"]),
        ("globex", "globex", ["data", "admin"]),
        ("acme-lookup", "acme", ["lookup"]),
        ("acme-put", "acme", ["put"]),
        ("acme-feedback", "acme", ["feedback"]),
        ("acme-data", "acme", ["data"]),
        ("acme-admin", "acme", ["admin"]),
    )
}


@dataclass
class Running:
    """A service in a thread. Use it as a context manager."""

    database_url: str
    service: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    def __post_init__(self) -> None:
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self.hot: HotStore | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._started.wait(20)
        if self._failure:
            raise self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as exc:
            self._failure = exc
            self._started.set()
            raise

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        settings = Settings(service=Service(database_url=self.database_url, **self.service))
        database = await connect(
            self.database_url,
            size=settings.service.database_pool_size,
            statement_timeout_ms=settings.service.statement_timeout_ms,
        )
        telemetry, store = Telemetry(settings), PostgresStore(database)
        notices = open_notices(settings.service, database)
        self.hot = hot_store(settings.service, store, notices)
        app = create_app(
            settings,
            self.hot or store,
            PostgresAdmin(database),
            PostgresRecords(database),
            Named(),
            telemetry,
        )
        listening = None
        if self.hot:
            telemetry.registry.register(HotGauges(self.hot))
            listening = asyncio.create_task(notices.run(self.hot.heard))

        def ready(urls: list[str]) -> None:
            self.url = urls[0]
            self._started.set()

        try:
            await run(
                [Listener(app, "127.0.0.1", 0, "test")],
                stop=self._stop,
                ready=ready,
                grace_seconds=1.0,
            )
        finally:
            if listening:
                listening.cancel()
                await asyncio.wait([listening])
            await app.drain(1.0)
            if self.hot:
                await self.hot.close()
            await database.close()


class Api:
    """Calls to a service, as one of the callers, in one of the formats."""

    def __init__(self, url: str, caller: str | None = None, format: str = JSON) -> None:
        headers = {} if caller is None else {"x-test-caller": caller}
        self.http = httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20)
        self.format = format

    def close(self) -> None:
        self.http.close()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """A body that is bytes is sent as it is."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent.setdefault("content-type", self.format)
            if not isinstance(body, bytes):
                encode = (
                    msgspec.msgpack.encode if self.format == MESSAGEPACK else msgspec.json.encode
                )
                body = encode(body)
        return self.http.request(method, path, content=body, headers=sent)

    def ok(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        reply = self.call(method, path, body, **headers)
        assert reply.is_success, (reply.status_code, reply.text)
        return decoded(reply)

    def policy(self, **fields: Any) -> str:
        """A policy of its own for a test: shared unless told otherwise."""
        policy_id = next(_ids)
        self.ok("PUT", f"/policies/{policy_id}", {"sharing": "shared", **fields})
        return policy_id

    def change(self, policy_id: str, **fields: Any) -> dict[str, Any]:
        return self.ok("PUT", f"/policies/{policy_id}", {"sharing": "shared", **fields})

    def put(self, policy_id: str, **fields: Any) -> dict[str, Any]:
        if "body" not in fields:
            answer = fields.get("response", {"answer": 42})
            text = msgspec.json.encode(answer)
            fields["response"] = text if self.format == MESSAGEPACK else answer
        return self.ok("POST", "/cache/put", {"policy_id": policy_id, **fields})

    def lookup(self, policy_id: str, **fields: Any) -> dict[str, Any]:
        return self.ok("POST", "/cache/lookup", {"policy_id": policy_id, **fields})

    def purge(self, **fields: Any) -> dict[str, Any]:
        return self.ok("POST", "/cache/purge", fields)

    def wait_for_alias(self, entry: str) -> None:
        """Aliases are written off the reply path."""
        deadline = time.monotonic() + 5
        while not self.ok("GET", f"/cache/entries/{entry}")["aliases"]:
            assert time.monotonic() < deadline

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels, labels sorted by name."""
        text = self.http.get("/metrics").text
        lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def decoded(reply: httpx.Response) -> dict[str, Any]:
    if not reply.content:
        return {}
    packed = reply.headers["content-type"] == MESSAGEPACK
    decode = msgspec.msgpack.decode if packed else msgspec.json.decode
    made: dict[str, Any] = decode(reply.content)
    return made


def refused(reply: httpx.Response, status: int, code: str, *words: str) -> str:
    """The message of an error reply, which must be of that status and code and have the words."""
    assert reply.status_code == status, (reply.status_code, reply.text)
    error = decoded(reply)["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message"}
    for word in words:
        assert word in error["message"], error["message"]
    return str(error["message"])


def outcome(reply: dict[str, Any]) -> tuple[str | None, str]:
    """(tier, reason) of a lookup."""
    assert reply["hit"] == (reply["tier"] is not None)
    return reply["tier"], reply["reason"]


def execute(url: str, statement: str) -> None:
    """Run one statement in a database, past the service."""

    async def run_it() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run_it())


def fetch(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of one query in a database, past the service."""

    async def run_it() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(run_it())
