"""Silence is bounded: before and within a handshake, a head, and a reply nobody reads."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import pytest

from cachesvc.edge.limits import Limits
from tests.edge.pki import uri
from tests.edge.running import App, Running, get, read_all, read_until

if TYPE_CHECKING:
    import socket

    from tests.edge.pki import CA

SHORT = Limits(header_seconds=0.3, handshake_seconds=0.3, stall_seconds=0.3, keep_alive_seconds=1)


def drip(sock: socket.socket, piece: bytes, seconds: float) -> bytes:
    """Send a piece every 20 ms until the peer answers or ends; what it said."""
    sock.settimeout(0.02)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            sock.sendall(piece)
            said = sock.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:  # closed while the last piece was under way
            return b""
        return said
    raise AssertionError("the connection is still open")


def test_the_bounds_are_ten_seconds_for_a_head_and_five_for_a_handshake() -> None:
    assert Limits().header_seconds == 10
    assert Limits().handshake_seconds == 5


def test_a_head_that_drips_in_is_closed(loop: str) -> None:
    app = App()
    with Running(app, loop, limits=SHORT) as edge, edge.connect() as sock:
        sock.sendall(b"GET /scope HTTP/1.1\r\nHost: a\r\nX: ")
        started = time.monotonic()
        said = drip(sock, b"a", 5)

    assert said.startswith(b"HTTP/1.1 408 ")
    assert 0.2 < time.monotonic() - started < 2
    assert app.calls == []


def test_empty_lines_buy_no_time(loop: str) -> None:
    with Running(App(), loop, limits=SHORT) as edge, edge.connect() as sock:
        assert drip(sock, b"\r\n", 5) == b""


def test_empty_lines_buy_a_kept_connection_no_time(loop: str) -> None:
    with Running(App(), loop, limits=SHORT) as edge, edge.connect() as sock:
        sock.sendall(get("/scope"))
        read_until(sock, b"}")

        assert drip(sock, b"\r\n", 5) == b""


def test_a_second_head_that_drips_in_is_closed(loop: str) -> None:
    with Running(App(), loop, limits=SHORT) as edge, edge.connect() as sock:
        sock.sendall(get("/scope"))
        read_until(sock, b"}")
        sock.sendall(b"GET /scope HTTP/1.1\r\nX: ")

        assert drip(sock, b"a", 5).startswith(b"HTTP/1.1 408 ")


def test_a_connection_without_a_byte_is_closed(loop: str) -> None:
    with Running(App(), loop, limits=SHORT) as edge, edge.connect() as sock:
        assert read_all(sock) == b""


def test_a_slow_reply_is_not_a_slow_head(loop: str) -> None:
    app = App()
    with Running(app, loop, limits=SHORT) as edge, edge.connect() as sock:
        sock.sendall(get("/stream", "Connection: close"))
        read_until(sock, b"first")
        sock.settimeout(3 * SHORT.header_seconds)
        received = b""
        try:
            received = sock.recv(1)
        except TimeoutError:
            sock.settimeout(5)
            app.go()
            received = read_all(sock)

    assert received.strip().endswith(b"last\r\n0")


def test_a_head_that_drips_in_behind_a_reply_leaves_the_reply_whole(loop: str) -> None:
    app = App()
    with Running(app, loop, limits=SHORT) as edge, edge.connect() as sock:
        sock.sendall(get("/stream"))
        read_until(sock, b"first")
        sock.sendall(b"GET /scope HTTP/1.1\r\n")
        silent = edge.connect()
        # It is closed by the same timer, armed after ours.
        assert read_all(silent) == b""
        silent.close()
        app.go()

        assert read_all(sock).strip() == b"4\r\nlast\r\n0"


def test_a_tls_connection_without_a_byte_is_closed(loop: str, ca: CA) -> None:
    with Running(App(), loop, ca.server_tls(), SHORT) as edge, edge.connect() as sock:
        assert read_all(sock) == b""


def test_a_handshake_that_stops_halfway_is_closed(loop: str, ca: CA) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = ca.client_context(None).wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        half.do_handshake()
    except ssl.SSLWantReadError:
        hello = outgoing.read()
    with Running(App(), loop, ca.server_tls(), SHORT) as edge, edge.connect() as sock:
        sock.sendall(hello[:50])

        assert read_all(sock) == b""


def test_silent_connections_do_not_delay_a_live_one(loop: str, ca: CA) -> None:
    with Running(App(), loop) as edge:
        idle = [edge.connect() for _ in range(200)]
        for sock in idle:
            sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        started = time.monotonic()
        for _ in range(20):
            assert b" 200 " in edge.exchange(get("/scope", "Connection: close"))
        took = time.monotonic() - started
        for sock in idle:
            sock.close()
    assert took < 2


def test_a_reader_that_takes_nothing_is_broken_off(loop: str) -> None:
    app = App()
    with Running(app, loop, limits=SHORT) as edge, edge.connect() as sock:
        sock.sendall(get("/flood"))
        sock.recv(100)

        assert app.disconnects.acquire(timeout=5)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reader_that_takes_a_little_is_served_on(loop: str, tls: bool, ca: CA) -> None:
    context = ca.client_context(ca.issue([uri("spiffe://a/b")])) if tls else None
    server_tls = ca.server_tls() if tls else None
    with Running(App(), loop, server_tls, SHORT) as edge, edge.connect(context) as sock:
        sock.sendall(get("/bulk"))
        until = time.monotonic() + 4 * SHORT.stall_seconds
        taken = 0
        while time.monotonic() < until:
            taken += len(sock.recv(2**17))
            time.sleep(0.01)

        # So the reply was never all sent: only its progress kept it alive.
        assert 0 < taken < 2**24
        assert sock.recv(100)
