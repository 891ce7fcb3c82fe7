"""A primary and its streaming replica, both real, of the embedded package's own programs."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg

from cachesvc.store import binaries
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import migrate_in_subprocess
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
}
# So long that the sockets go to a folder of their own, where the other server may find them.
_DEEP = (
    "far-from-the-shortest-path-to-a-data-directory-that-anybody-ever-gave-to-a-server-of-theirs"
)


class Pair(NamedTuple):
    """Both servers run."""

    primary: EmbeddedPostgres
    replica: EmbeddedPostgres

    @property
    def url(self) -> str:
        """Both hosts, of which the one that can be written to is wanted."""
        hosts = ",".join(_host(server.url) for server in self)
        return f"postgresql://cachesvc@/cachesvc?host={hosts}&target_session_attrs=read-write"

    def kill_primary(self) -> None:
        assert self.primary.pid is not None
        os.kill(self.primary.pid, signal.SIGKILL)

    async def promote(self) -> None:
        """As `pg_ctl promote`; returns when the replica is a primary."""
        assert await ask_server(self.replica.url, "SELECT pg_promote(true, 20)")


@contextmanager
def replicated(folder: Path) -> Iterator[Pair]:
    """A migrated primary and a replica that streams from it."""
    primary = EmbeddedPostgres(folder / "primary" / _DEEP, settings=_SETTINGS)
    replica = EmbeddedPostgres(folder / "replica" / _DEEP, settings=_SETTINGS)
    primary.start()
    try:
        migrate_in_subprocess(primary.url)
        _copy(primary.url, folder / "replica" / _DEEP / "postgres")
        replica.start()
        try:
            yield Pair(primary, replica)
        finally:
            replica.stop()
    finally:
        primary.stop()


def _copy(url: str, cluster: Path) -> None:
    cluster.parent.mkdir(mode=0o700, parents=True)
    program = binaries.installed() / "pg_basebackup"
    source: list[str | Path] = [
        "-h",
        _host(url),
        "-U",
        "cachesvc",
        "-D",
        cluster,
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
    ]
    subprocess.run([program, *source], check=True, capture_output=True, timeout=60)
    account = binaries.account_for(cluster)
    if account.uid != os.geteuid():
        for path in (cluster, *cluster.rglob("*")):
            os.chown(path, account.uid, account.gid)


def _host(url: str) -> str:
    return parse_qs(urlsplit(url).query)["host"][0]


async def ask_server(url: str, query: str) -> Any:
    """One value from one server, on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def caught_up(pair: Pair) -> None:
    """Wait until the replica has replayed all that the primary has written."""
    lsn = await ask_server(pair.primary.url, "SELECT pg_current_wal_lsn()::text")

    async def replayed() -> bool:
        query = f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn"
        return bool(await ask_server(pair.replica.url, query))

    await until(replayed)
