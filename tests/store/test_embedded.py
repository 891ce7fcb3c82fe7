"""The embedded server: private, alone on its data, gone with its owner, back after any kill."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

import asyncpg
import pytest

from cachesvc.errors import StartError
from cachesvc.store import cluster
from cachesvc.store.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWNER = """
import signal, sys
from pathlib import Path
from cachesvc.store.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
signal.pause()
"""


def ask(url: str, question: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(question)
        finally:
            await connection.close()

    return asyncio.run(run())


def working(data: Path) -> list[int]:
    """The processes of the server on `data`."""
    return list(cluster._at_work(data / "postgres"))


def gone(data: Path, seconds: float = 5.0) -> bool:
    return cluster._ended_within(seconds, data / "postgres")


def modes(path: Path) -> dict[Path, tuple[int, int]]:
    """Mode and owner of every directory above `path`."""
    return {p: (p.stat().st_mode, p.stat().st_uid) for p in path.parents}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(data: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data)
    yield server
    server.stop()
    assert working(data) == []


@pytest.fixture
def owner(data: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process of ours that runs a server on `data` until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert _line(process.stdout)
        yield process
    finally:
        process.kill()
        process.communicate()
        assert gone(data)


def _line(stream: IO[str] | None) -> str:
    assert stream
    return stream.readline()


def test_it_starts_from_nothing_and_keeps_its_data(data: Path, server: EmbeddedPostgres) -> None:
    server.start()
    assert server.alive()
    assert ask(server.url, "SELECT current_database() || current_user") == "cachesvccachesvc"
    assert ask(server.url, "SHOW listen_addresses") == ""
    ask(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
    server.stop()
    server.stop()
    assert not server.alive()
    assert working(data) == []
    server.start()
    assert ask(server.url, "SELECT n FROM kept") == 7


def test_it_stops_within_five_seconds_with_a_query_running(
    data: Path, server: EmbeddedPostgres
) -> None:
    server.start()

    async def run() -> float:
        connection = await asyncpg.connect(server.url)
        query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        watcher = await asyncpg.connect(server.url)
        running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        for _ in range(400):
            if await watcher.fetchval(running):
                break
        else:
            pytest.fail("the query does not run")
        await watcher.close()
        started = time.monotonic()
        await asyncio.to_thread(server.stop)
        took = time.monotonic() - started
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await query
        return took

    assert asyncio.run(run()) < 5
    assert working(data) == []


def test_nobody_else_can_reach_it_and_no_directory_above_is_opened(
    tmp_path: Path, data: Path, server: EmbeddedPostgres
) -> None:
    before = modes(data)
    server.start()
    assert modes(data) == before
    for folder in (data, data / "postgres"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in (data / "postgres.log", data / "postgres.lock"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_under_a_closed_home_it_works_as_well(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    server = EmbeddedPostgres(home / ".local" / "share" / "cachesvc")
    server.start()
    try:
        assert ask(server.url, "SELECT 1") == 1
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
    finally:
        server.stop()


def test_a_path_too_long_for_a_socket_gets_a_short_private_one(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30) / "data"
    server = EmbeddedPostgres(data)
    server.start()
    folder = cluster.socket_folder(data / "postgres")
    assert len(str(folder)) < 40
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert ask(server.url, "SELECT 1") == 1
    assert EmbeddedPostgres.running_url(data) == server.url
    server.stop()
    assert not folder.exists()


def test_a_second_process_is_told_who_is_using_the_directory(
    data: Path, owner: subprocess.Popen[str]
) -> None:
    second = EmbeddedPostgres(data)
    with pytest.raises(StartError) as caught:
        second.start()
    assert caught.value.message == f"{data}: in use by process {owner.pid}"
    url = EmbeddedPostgres.running_url(data)
    assert url
    assert ask(url, "SELECT 1") == 1


def test_no_server_is_said_to_run_where_none_does(data: Path, server: EmbeddedPostgres) -> None:
    assert EmbeddedPostgres.running_url(data) is None
    server.start()
    assert EmbeddedPostgres.running_url(data) == server.url
    server.stop()
    assert EmbeddedPostgres.running_url(data) is None


def test_the_server_ends_with_the_process_that_owns_it(
    data: Path, owner: subprocess.Popen[str]
) -> None:
    assert working(data)
    owner.kill()
    assert gone(data)


def test_a_server_whose_owner_was_just_killed_is_waited_for(
    data: Path, owner: subprocess.Popen[str], server: EmbeddedPostgres
) -> None:
    url = EmbeddedPostgres.running_url(data)
    assert url
    ask(url, "CREATE TABLE kept AS SELECT 7 AS n")
    owner.kill()
    owner.wait()
    server.start()
    assert ask(server.url, "SELECT n FROM kept") == 7


@pytest.mark.parametrize("whom", ["the postmaster", "everything"])
def test_after_kill_9_it_starts_again_with_what_was_committed(
    data: Path, server: EmbeddedPostgres, whom: str
) -> None:
    server.start()
    ask(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
    for _ in range(3):
        assert server.pid
        for pid in working(data) if whom == "everything" else [server.pid]:
            os.kill(pid, signal.SIGKILL)
        # Nobody has waited for it: it is a zombie now, as under a process 1 that does not reap.
        server.start()
        assert ask(server.url, "SELECT n FROM kept") == 7


def test_stale_locks_of_a_living_stranger_are_no_obstacle(
    data: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    server.stop()
    stale = f"{os.getpid()}\n{cluster.HERE}\n1\n5432\n.\n\n  1 1\nready   \n"
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (data / "postgres" / name).write_text(stale)
    server.start()
    assert ask(server.url, "SELECT 1") == 1


def test_a_set_up_that_was_broken_off_is_begun_anew(data: Path, server: EmbeddedPostgres) -> None:
    draft = data / "postgres.new"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    server.start()
    assert ask(server.url, "SELECT 1") == 1
    assert not draft.exists()


def test_a_server_that_cannot_start_says_why_in_one_line(
    data: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    server.stop()
    (data / "postgres" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(StartError, match="configuration file") as caught:
        server.start()
    assert "\n" not in caught.value.message
    (data / "postgres" / "postgresql.auto.conf").write_text("")
    server.start()  # and the failure left no lock behind


def test_a_data_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="Not a directory"):
        EmbeddedPostgres(tmp_path / "file" / "data").start()


def test_it_refuses_a_thread_that_would_take_it_along(server: EmbeddedPostgres) -> None:
    caught: list[StartError] = []

    def start() -> None:
        try:
            server.start()
        except StartError as exc:
            caught.append(exc)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in caught[0].message
