"""Listeners start together or not at all, and stop within their grace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import statistics
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from cachesvc.edge.server import Listener, ServerTLS, install_stop_signals, run
from cachesvc.errors import ConfigError, StartError
from tests.edge.pki import uri
from tests.edge.running import LOOPS, App, Running, get, read_all, read_until

if TYPE_CHECKING:
    from tests.edge.pki import CA


def serve(loop: str, *listeners: Listener) -> None:
    """Run the listeners until all accept."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        stop = asyncio.Event()
        runner.run(run(listeners, stop=stop, ready=lambda _: stop.set()))


def test_a_taken_port_is_one_line_with_host_and_port(loop: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as failure:
            serve(loop, Listener(App(), "127.0.0.1", port, "service"))

    said = failure.value.message
    assert said == f"service: cannot listen on 127.0.0.1:{port}: the address is in use"


def test_a_taken_second_port_frees_the_first(loop: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("", 0)) as probe:
        free = probe.getsockname()[1]
        probe.close()
        first = Listener(App(), "127.0.0.1", free, "service")
        second = Listener(App(), "127.0.0.1", taken.getsockname()[1], "admin")
        with pytest.raises(StartError):
            serve(loop, first, second)
        serve(loop, first)


@pytest.mark.parametrize(
    ("host", "fault"),
    [("no-such-host.invalid", "does not resolve"), ("192.0.2.1", "cannot assign")],
)
def test_a_host_that_is_not_ours_is_named(loop: str, host: str, fault: str) -> None:
    with pytest.raises(StartError, match=rf"proxy: cannot listen on {host}:0: .*{fault}"):
        serve(loop, Listener(App(), host, 0, "proxy"))


def test_a_wrong_certificate_stops_the_start_and_frees_the_port(loop: str) -> None:
    wrong = ServerTLS("missing.pem", "missing.key", "missing.pem")
    with pytest.raises(ConfigError, match=r"service\.tls\.cert_file"):
        serve(loop, Listener(App(), "127.0.0.1", 0, "service", wrong))


def test_ready_tells_real_urls_once_all_accept(loop: str, ca: CA) -> None:
    async def ask() -> None:
        stop = asyncio.Event()
        up: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        listeners = [
            Listener(App(), "127.0.0.1", 0, "service", ca.server_tls()),
            Listener(App(), "localhost", 0, "admin"),
        ]
        task = asyncio.create_task(run(listeners, stop=stop, ready=up.set_result))
        secure, plain = await up
        assert secure.startswith("https://127.0.0.1:")
        assert plain.startswith("http://localhost:")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{plain}/scope")).status_code == 200
        context = ca.client_context(ca.issue([uri("spiffe://a/b")]))
        async with httpx.AsyncClient(verify=context) as client:
            reply = await client.get(f"{secure}/scope".replace("127.0.0.1", "localhost"))
            assert reply.status_code == 200
        stop.set()
        await task

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(ask())


def test_ipv6_is_written_in_brackets(loop: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    said: list[str] = []

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        stop = asyncio.Event()

        def ready(urls: list[str]) -> None:
            said.extend(urls)
            stop.set()

        runner.run(run([Listener(App(), "::1", 0, "service")], stop=stop, ready=ready))

    assert said[0].startswith("http://[::1]:")


def test_a_stop_lets_a_reply_finish(loop: str) -> None:
    app = App()
    with Running(app, loop, grace_seconds=5) as edge, edge.connect() as sock:
        sock.sendall(get("/stream"))
        read_until(sock, b"first")
        edge.stop()
        assert not edge.wait(0.1)
        with pytest.raises(ConnectionRefusedError):
            edge.connect()
        app.go()

        assert read_all(sock).strip() == b"4\r\nlast\r\n0"
        assert edge.wait(1)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_stop_breaks_a_reply_off_after_the_grace(
    loop: str, tls: bool, ca: CA, caplog: pytest.LogCaptureFixture
) -> None:
    context = ca.client_context(ca.issue([uri("spiffe://a/b")])) if tls else None
    server_tls = ca.server_tls() if tls else None
    with (
        Running(App(), loop, server_tls, grace_seconds=0.3) as edge,
        edge.connect(context) as sock,
    ):
        sock.sendall(get("/stream"))
        read_until(sock, b"first")
        started = time.monotonic()
        edge.stop()
        with contextlib.suppress(ConnectionResetError):
            assert b"0\r\n" not in read_all(sock)
        assert edge.wait(1)
        assert 0.25 < time.monotonic() - started < 1.3
    assert caplog.records == []


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_idle_and_silent_connections_do_not_hold_up_a_stop(loop: str, tls: bool, ca: CA) -> None:
    context = ca.client_context(ca.issue([uri("spiffe://a/b")])) if tls else None
    server_tls = ca.server_tls() if tls else None
    with (
        Running(App(), loop, server_tls, grace_seconds=10) as edge,
        edge.connect(context) as kept,
        edge.connect() as silent,
    ):
        kept.sendall(get("/scope"))
        read_until(kept, b"}")
        edge.stop()

        assert edge.wait(2)
        assert read_all(silent) == b""


def test_a_reader_that_stalls_does_not_hold_up_a_stop(loop: str) -> None:
    with Running(App(), loop, grace_seconds=0.2) as edge, edge.connect() as sock:
        sock.sendall(get("/flood"))
        sock.recv(100)
        edge.stop()

        assert edge.wait(2)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_no_reply_waits_for_an_acknowledgement(loop: str, tls: bool, ca: CA) -> None:
    """Nagle's algorithm would hold a reply's second packet for 40 ms."""
    context = ca.client_context(ca.issue([uri("spiffe://a/b")])) if tls else None
    server_tls = ca.server_tls() if tls else None
    times = []
    with Running(App(), loop, server_tls) as edge, edge.connect(context) as sock:
        for _ in range(20):
            started = time.monotonic()
            sock.sendall(get("/scope"))
            read_until(sock, b"}")
            times.append(time.monotonic() - started)

    assert statistics.median(times) < 0.02


def test_signals_set_stop(loop: str) -> None:
    async def wait() -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            stop = asyncio.Event()
            install_stop_signals(asyncio.get_running_loop(), stop)
            os.kill(os.getpid(), name)
            await asyncio.wait_for(stop.wait(), 5)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(wait())
