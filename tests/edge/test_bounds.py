"""Connections are bounded in number, bodies in patience; handing over is for who asks for it."""

from __future__ import annotations

import json
import time

from cachesvc.edge.limits import Limits
from tests.edge.running import App, Running, get, read_all, read_until

FEW = Limits(max_connections=2)
PATIENT = Limits(body_seconds=0.3)


def test_a_connection_too_many_is_told_when_to_come_again(loop: str) -> None:
    with Running(App(), loop, limits=FEW) as edge, edge.connect() as one, edge.connect() as two:
        for sock in (one, two):
            sock.sendall(get("/scope"))
            read_until(sock, b"}")
        with edge.connect() as third:
            head, _, body = read_all(third).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nretry-after: 1\r\n" in head
        assert json.loads(body)["error"]["code"] == "BUSY"
        one.sendall(get("/scope"))  # those that were there go on
        assert b" 200 " in read_until(one, b"}")
        one.sendall(get("/scope", "Connection: close"))
        read_all(one)
        deadline = time.monotonic() + 5
        while b" 503 " in edge.exchange(get("/scope", "Connection: close")):
            assert time.monotonic() < deadline


def test_a_body_that_stops_coming_is_refused(loop: str) -> None:
    app = App()
    with Running(app, loop, limits=PATIENT) as edge, edge.connect() as sock:
        sock.sendall(get("/echo", "Content-Length: 10", method="POST") + b"hi")
        began = time.monotonic()
        received = read_all(sock)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"body: nothing of it came in 0.3 seconds" in received
    assert 0.2 < time.monotonic() - began < 3
    assert app.disconnects.acquire(timeout=5)


def test_a_slow_body_that_goes_on_coming_is_read(loop: str) -> None:
    with Running(App(), loop, limits=PATIENT) as edge, edge.connect() as sock:
        sock.sendall(get("/echo", "Content-Length: 8", "Connection: close", method="POST"))
        for _ in range(8):
            time.sleep(0.1)
            sock.sendall(b"x")
        assert b'"body": "xxxxxxxx"' in read_all(sock)


def test_an_app_that_takes_its_time_is_not_the_peers_fault(loop: str) -> None:
    app = App()
    with Running(app, loop, limits=PATIENT) as edge, edge.connect() as sock:
        sock.sendall(get("/stream", "Connection: close", "Content-Length: 1", method="POST") + b"x")
        read_until(sock, b"first")
        time.sleep(0.5)
        app.go()
        assert b"last" in read_all(sock)


def test_without_a_bound_a_body_may_take_any_time(loop: str) -> None:
    limits = Limits(body_seconds=None, header_seconds=0.2)
    with Running(App(), loop, limits=limits) as edge, edge.connect() as sock:
        sock.sendall(get("/echo", "Content-Length: 1", "Connection: close", method="POST"))
        time.sleep(0.5)
        sock.sendall(b"x")
        assert b'"body": "x"' in read_all(sock)


def test_an_app_that_takes_no_connections_over_is_offered_none(loop: str) -> None:
    """The service: an offer of a WebSocket is ignored, as HTTP allows, and its body is kept."""
    offer = ("Connection: Upgrade", "Upgrade: websocket", "Content-Length: 2")
    with Running(App(), loop) as edge, edge.connect() as sock:
        sock.sendall(get("/echo", *offer, method="POST") + b"hi")
        assert b'"body": "hi"' in read_until(sock, b"]]}")
        sock.sendall(get("/scope", "Connection: close"))
        assert b" 200 " in read_all(sock)
