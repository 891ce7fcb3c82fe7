"""A reply that cannot be finished is broken off so that nobody takes it for an end."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.edge.pki import uri
from tests.edge.running import App, Running, get, read_all, read_until

if TYPE_CHECKING:
    from tests.edge.pki import CA


def test_the_client_sees_a_reset(loop: str) -> None:
    app = App()
    with Running(app, loop) as edge, edge.connect() as sock:
        sock.sendall(get("/abort"))
        read_until(sock, b"first")
        app.go()
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_an_http_1_0_client_sees_a_reset(loop: str) -> None:
    app = App()
    with Running(app, loop) as edge, edge.connect() as sock:
        sock.sendall(b"GET /abort HTTP/1.0\r\n\r\n")
        read_until(sock, b"first")
        app.go()
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_an_http_1_0_client_never_takes_a_failure_for_an_end(loop: str) -> None:
    with Running(App(), loop) as edge, edge.connect() as sock:
        sock.sendall(b"GET /fail HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            read_all(sock)


@pytest.mark.parametrize("extra", [b"", b"Connection: keep-alive\r\n"])
def test_an_http_1_0_client_gets_bare_bytes_up_to_the_end(loop: str, extra: bytes) -> None:
    app = App()
    with Running(app, loop) as edge, edge.connect() as sock:
        sock.sendall(b"GET /stream HTTP/1.0\r\n" + extra + b"\r\n")
        received = read_until(sock, b"first")
        app.go()
        head, _, body = (received + read_all(sock)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"firstlast"


def test_an_http_1_0_reply_with_a_length_keeps_it(loop: str) -> None:
    with Running(App(), loop) as edge:
        head, _, body = edge.exchange(b"GET /scope HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head


def test_a_client_library_raises(loop: str) -> None:
    app = App()
    with Running(app, loop) as edge, httpx.stream("GET", f"{edge.url}/abort") as reply:
        pieces = reply.iter_raw()
        assert next(pieces) == b"first"
        app.go()
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            next(pieces)


def test_breaking_off_is_no_error_of_the_app(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    with Running(app, loop) as edge, edge.connect() as sock:
        sock.sendall(get("/abort"))
        read_until(sock, b"first")
        app.go()
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    assert caplog.records == []


def test_under_tls_the_end_lacks_its_notice(loop: str, ca: CA) -> None:
    app = App()
    context = ca.client_context(ca.issue([uri("spiffe://a/b")]))
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # some builds set it
    with Running(app, loop, ca.server_tls()) as edge:
        plain = edge.connect()
        secure = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        with secure:
            secure.sendall(get("/abort"))
            read_until(secure, b"first")
            app.go()
            with pytest.raises((ssl.SSLError, ConnectionResetError), match=r"(?i)eof|reset"):
                read_all(secure)


def test_the_app_is_told_when_the_caller_leaves(loop: str) -> None:
    app = App()
    with Running(app, loop) as edge:
        sock = edge.connect()
        sock.sendall(get("/flood"))
        sock.recv(100)
        sock.close()

        assert app.disconnects.acquire(timeout=5)
