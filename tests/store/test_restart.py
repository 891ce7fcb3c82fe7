"""A server that is started again, by its supervisor or by the next process, after it died."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cachesvc.errors import StartError
from cachesvc.store import cluster
from cachesvc.store.embedded import EmbeddedPostgres
from tests.store.test_embedded import OWNER, ask, gone, working

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["short", "long"])
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A data directory; a long one has its socket elsewhere."""
    return tmp_path / ("long" * 30 if request.param == "long" else "short") / "data"


@pytest.fixture
def server(data: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data)
    yield server
    server.stop()
    assert working(data) == []


def end(server: EmbeddedPostgres, data: Path, number: signal.Signals) -> None:
    """The server dies; with SIGINT it tidies up before."""
    assert server.pid
    os.kill(server.pid, number)
    assert gone(data)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_server_started_again_has_the_same_url(
    data: Path, server: EmbeddedPostgres, number: signal.Signals
) -> None:
    server.start()
    url = server.url
    for _ in range(2):
        end(server, data, number)
        server.start()
        assert server.url == url
        assert ask(url, "SELECT 1") == 1
    assert EmbeddedPostgres.running_url(data) == url


def test_its_url_survives_a_start_that_failed_and_a_stop(
    data: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    url = server.url
    end(server, data, signal.SIGKILL)
    settings = data / "postgres" / "postgresql.auto.conf"
    settings.write_text("no_such_setting = 1\n")
    with pytest.raises(StartError, match="configuration file"):
        server.start()
    settings.write_text("")
    server.start()
    assert server.url == url
    server.stop()
    server.start()
    assert server.url == url
    assert ask(url, "SELECT 1") == 1


def test_where_somebody_took_the_place_of_its_socket_it_takes_another(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / ("long" * 30) / "data")
    server.start()
    taken = cluster.socket_folder(tmp_path / ("long" * 30) / "data" / "postgres")
    server.stop()
    taken.mkdir()
    try:
        server.start()
        assert str(taken) not in server.url
        assert ask(server.url, "SELECT 1") == 1
    finally:
        server.stop()
        shutil.rmtree(taken)


def test_the_socket_folder_that_a_crash_left_is_removed(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30) / "data"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline()
        left = cluster.socket_folder(data / "postgres")
        for pid in working(data):
            os.kill(pid, signal.SIGKILL)
        owner.kill()
    assert left.exists()
    server = EmbeddedPostgres(data)
    server.start()
    try:
        assert not left.exists()
        assert ask(server.url, "SELECT 1") == 1
    finally:
        server.stop()
