"""What two servers could read in two ways is refused before the app sees it, and closed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.edge.running import App, Running, get, read_all, read_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def edge(app: App, loop: str) -> Iterator[Running]:
    with Running(app, loop) as running:
        yield running


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        pytest.param(400, b"GET /scope HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(400, get("/scope", "Host: test"), id="two equal Hosts"),
        pytest.param(400, get("/scope", "host: other"), id="two different Hosts"),
        pytest.param(400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", id="1.0, two Hosts"),
        pytest.param(400, get("/echo", "Content-Length: 5", CHUNKED) + b"0\r\n\r\n", id="CL, TE"),
        pytest.param(400, get("/echo", CHUNKED, "Content-Length: 5") + b"0\r\n\r\n", id="TE, CL"),
        pytest.param(400, get("/echo", CHUNKED, CHUNKED) + b"0\r\n\r\n", id="TE twice"),
        pytest.param(400, get("/echo", "Transfer-Encoding: gzip, chunked"), id="TE gzip"),
        pytest.param(400, get("/echo", "Transfer-Encoding: xchunked"), id="TE unknown"),
        pytest.param(
            400,
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="TE in 1.0",
        ),
        pytest.param(400, get("/echo", "Content-Length: 1", "Content-Length: 1"), id="CL twice"),
        pytest.param(400, get("/echo", "Content-Length: +1"), id="CL signed"),
        pytest.param(400, get("/scope", "X : 1"), id="space before the colon"),
        pytest.param(400, get("/scope", "X: 1", " 2"), id="folded line"),
        pytest.param(400, get("/scope").replace(b"\r\n", b"\n"), id="bare LF"),
        pytest.param(400, get("/scope", "X: a\x00b"), id="NUL in a value"),
        pytest.param(400, b"GET /scope HTTP/2.0\r\nHost: a\r\n\r\n", id="HTTP/2.0"),
        pytest.param(400, b"GET /scope HTTP/0.9\r\nHost: a\r\n\r\n", id="HTTP/0.9"),
        pytest.param(400, b"GET /scope\r\n\r\n", id="no version"),
        pytest.param(400, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", id="CONNECT"),
        pytest.param(400, b"\x16\x03\x01\x02\x00\x01\x00", id="TLS on a plain port"),
        pytest.param(431, get("/scope", *["X: 1"] * 100), id="101 headers"),
        pytest.param(431, get("/scope", "X: " + "1" * 32768), id="one long header"),
        pytest.param(431, get("/scope", *["X: " + "1" * 400] * 90), id="many bytes of headers"),
        pytest.param(431, get("/" + "1" * 32768), id="a long path"),
    ],
)
def test_an_ambiguous_or_oversized_head_is_refused_and_closed(
    edge: Running, app: App, status: int, request_bytes: bytes
) -> None:
    received = edge.exchange(request_bytes + get("/scope"))

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head
    assert set(json.loads(body)["error"]) == {"code", "message"}
    assert app.calls == []


def test_a_head_at_the_bounds_is_served(edge: Running, app: App) -> None:
    head = get("/scope", "Connection: close", *["X: 1"] * 97, "X: " + "1" * 31000)

    assert edge.exchange(head).startswith(b"HTTP/1.1 200 ")
    assert app.calls == ["/scope"]


def test_http_1_0_needs_no_host(edge: Running) -> None:
    assert edge.exchange(b"GET /scope HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def send_until_broken(sock: socket.socket) -> None:
    """Send until the peer is gone. Fails if it takes all of it."""
    with pytest.raises(ConnectionError):  # noqa: PT012 - the loop is the act
        for _ in range(100_000):
            sock.sendall(b"e" * 65536)


def test_a_header_without_end_is_refused_while_it_arrives(edge: Running, app: App) -> None:
    with edge.connect() as sock:
        sock.sendall(b"GET /scope HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(6):
            sock.sendall(b"e" * 65536)
        # Nothing is lost by the peer's still sending.
        assert b" 431 " in read_all(sock)
        send_until_broken(sock)
    assert app.calls == []


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(b"3;" + b"e" * 65536, id="chunk extension"),
        pytest.param(b"0\r\nX: " + b"e" * 65536, id="trailer value"),
        pytest.param(b"0\r\n" + b"X: 1\r\n" * 9000, id="trailers"),
    ],
)
def test_a_chunked_body_cannot_grow_outside_its_chunks(
    edge: Running, app: App, endless: bytes
) -> None:
    with edge.connect() as sock:
        sock.sendall(get("/echo", CHUNKED, method="POST"))
        sock.sendall(endless)
        sock.sendall(b"e" * 300_000)
        assert b" 431 " in read_all(sock)
        send_until_broken(sock)
    assert app.disconnects.acquire(timeout=5)


def test_trailers_never_join_the_headers(edge: Running) -> None:
    trailers = b"0\r\nAuthorization: Bearer other\r\nHost: other\r\n\r\n"
    with edge.connect() as sock:
        sock.sendall(get("/echo", CHUNKED, "Connection: close", method="POST"))
        sock.sendall(b"2\r\nhi\r\n" + trailers)
        reply = json.loads(read_until(sock, b"]]}").partition(b"\r\n\r\n")[2])

    assert reply["body"] == "hi"
    assert [name for name, _ in reply["headers"]] == ["host", "transfer-encoding", "connection"]


@pytest.mark.parametrize("framing", ["Content-Length: 2", CHUNKED])
def test_an_offer_of_h2c_is_ignored_and_the_body_kept(
    edge: Running, app: App, framing: str
) -> None:
    """What Java's HttpClient sends first."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEA")
    body = b"hi" if "Length" in framing else b"2\r\nhi\r\n0\r\n\r\n"
    with edge.connect() as sock:
        sock.sendall(get("/echo", *offer, framing, method="POST") + body)
        assert b'"body": "hi"' in read_until(sock, b"]]}")
        sock.sendall(get("/scope"))
        assert b" 200 " in read_until(sock, b"}")
    assert app.calls == ["/echo", "/scope"]


def test_a_body_after_an_offer_of_h2c_is_no_second_request(edge: Running, app: App) -> None:
    inner = get("/whoami")
    head = get(
        "/echo", "Connection: Upgrade, close", "Upgrade: h2c", f"Content-Length: {len(inner)}"
    )

    edge.exchange(head.replace(b"GET", b"POST") + inner)

    assert app.calls == ["/echo"]


def test_of_many_offers_of_h2c_at_once_one_is_answered(edge: Running, app: App) -> None:
    offer = get("/scope", "Connection: Upgrade", "Upgrade: h2c")

    assert edge.exchange(offer * 50).count(b"HTTP/1.1 200 ") == 1

    assert app.calls == ["/scope"]


def test_a_bad_second_request_leaves_the_first_answer_whole(edge: Running, app: App) -> None:
    with edge.connect() as sock:
        sock.sendall(get("/stream"))
        read_until(sock, b"first")
        sock.sendall(b"GET /scope HTTP/1.1\r\n\r\n" + get("/scope"))
        # Its answer comes after the bytes above were read.
        edge.exchange(get("/echo", "Connection: close"))
        app.go()

        assert read_all(sock).strip() == b"4\r\nlast\r\n0"
    assert app.calls == ["/stream", "/echo"]


def test_two_requests_in_one_packet_are_answered_in_order(edge: Running, app: App) -> None:
    received = edge.exchange(get("/scope") + get("/echo", "Connection: close"))

    assert received.count(b"HTTP/1.1 200 ") == 2
    assert app.calls == ["/scope", "/echo"]


def test_a_body_cut_by_garbage_ends_the_request(edge: Running, app: App) -> None:
    received = edge.exchange(get("/echo", CHUNKED, method="POST") + b"zz\r\n")

    assert received.startswith(b"HTTP/1.1 400 ")
    assert app.disconnects.acquire(timeout=5)


def test_forwarding_headers_change_neither_address_nor_scheme(edge: Running) -> None:
    forged = ("X-Forwarded-For: 8.8.8.8", "X-Forwarded-Proto: https", "Forwarded: for=8.8.8.8")
    with edge.connect() as sock:
        sock.sendall(get("/scope", *forged))
        reply = json.loads(read_until(sock, b"}").partition(b"\r\n\r\n")[2])
        assert reply["client"] == list(sock.getsockname())
    assert reply["scheme"] == "http"


def test_no_reply_tells_the_server_or_the_date(edge: Running) -> None:
    head = edge.exchange(get("/scope", "Connection: close")).partition(b"\r\n\r\n")[0].lower()

    assert b"server:" not in head
    assert b"date:" not in head
