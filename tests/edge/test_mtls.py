"""With [service.tls], a connection without a good client certificate never reaches the app."""

from __future__ import annotations

import json
import ssl
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.edge.pki import CA, SERVER, uri
from tests.edge.running import App, Running, get, read_all, read_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.edge.pki import Pair

NAME = uri("spiffe://corp/a")
HOUR = timedelta(hours=1)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def edge(app: App, loop: str, ca: CA) -> Iterator[Running]:
    with Running(app, loop, ca.server_tls()) as running:
        yield running


def is_refused(edge: Running, context: ssl.SSLContext) -> bool:
    """True if a request gets no byte back. In TLS 1.3 the refusal shows at the first read."""
    try:
        with edge.connect(context) as sock:
            sock.sendall(get("/scope", "Connection: close"))
            return read_all(sock) == b""
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda ca, _: None, id="none"),
        pytest.param(lambda ca, _: ca.issue([NAME], start=-2 * HOUR, end=-HOUR), id="expired"),
        pytest.param(lambda ca, _: ca.issue([NAME], start=HOUR, end=2 * HOUR), id="not yet valid"),
        pytest.param(lambda _, other: other.issue([NAME]), id="another CA of the same name"),
        pytest.param(lambda ca, _: ca.issue([NAME], usage=SERVER), id="for servers only"),
    ],
)
def test_a_bad_certificate_is_refused(
    edge: Running,
    app: App,
    ca: CA,
    tmp_path: Path,
    make: Callable[[CA, CA], Pair | None],
) -> None:
    assert is_refused(edge, ca.client_context(make(ca, CA(tmp_path))))
    assert app.calls == []


def test_refusals_are_logged_with_their_reason_and_not_one_by_one(
    edge: Running, ca: CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cachesvc.edge")
    context = ca.client_context(ca.issue([NAME], start=-2 * HOUR, end=-HOUR))
    for _ in range(20):
        assert is_refused(edge, context)

    assert caplog.messages[0] == "1 TLS handshakes refused, the last: certificate has expired"
    assert len(caplog.messages) < 5


def test_a_good_certificate_is_served(edge: Running, app: App, ca: CA) -> None:
    assert not is_refused(edge, ca.client_context(ca.issue([NAME])))
    assert app.calls == ["/scope"]


def test_tls_1_2_is_refused(edge: Running, app: App, ca: CA) -> None:
    context = ca.client_context(ca.issue([NAME]))
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    assert is_refused(edge, context)
    assert app.calls == []


def test_plain_http_on_the_tls_port_is_refused(edge: Running, app: App) -> None:
    with edge.connect() as sock:
        sock.sendall(get("/scope"))
        assert b"HTTP/1.1" not in read_all(sock)
    assert app.calls == []


def test_no_session_is_ever_resumed(edge: Running, ca: CA) -> None:
    context = ca.client_context(ca.issue([NAME]))
    with edge.connect(context) as first:
        assert isinstance(first, ssl.SSLSocket)
        first.sendall(get("/scope"))
        # A ticket would come with the first bytes of the reply.
        read_until(first, b"}")
        session = first.session
    assert session is None or not session.has_ticket

    plain = edge.connect()
    with context.wrap_socket(plain, server_hostname="localhost", session=session) as second:
        second.sendall(get("/scope"))
        read_until(second, b"}")
        assert not second.session_reused


def test_the_app_sees_the_certificate(edge: Running, ca: CA) -> None:
    pair = ca.issue([NAME])
    with edge.connect(ca.client_context(pair)) as sock:
        sock.sendall(get("/scope", "Connection: close"))
        seen = json.loads(read_all(sock).partition(b"\r\n\r\n")[2])
        assert seen["client"] == list(sock.getsockname())

    assert seen["scheme"] == "https"
    assert seen["tls"]["client_cert_chain"] == [pair.pem]
    assert seen["tls"]["cachesvc.sha256"] == pair.sha256
    assert seen["tls"]["tls_version"] == 0x0304


def test_a_plain_connection_has_no_certificate(loop: str) -> None:
    with Running(App(), loop) as edge:
        seen = json.loads(edge.exchange(get("/scope", "Connection: close")).split(b"\r\n\r\n")[1])

    assert seen["tls"] is None


def test_what_uvicorn_tells_itself_is_kept(
    edge: Running, ca: CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = HttpToolsProtocol.on_message_begin

    def telling(self: Any) -> None:
        stock(self)
        self.scope["extensions"] = {"tls": {"client_cert_chain": ["from uvicorn"]}}

    monkeypatch.setattr(HttpToolsProtocol, "on_message_begin", telling)
    with edge.connect(ca.client_context(ca.issue([NAME]))) as sock:
        sock.sendall(get("/scope", "Connection: close"))
        seen = json.loads(read_all(sock).partition(b"\r\n\r\n")[2])

    assert seen["tls"] == {"client_cert_chain": ["from uvicorn"]}


def test_a_request_sent_with_the_end_of_the_handshake_is_served(edge: Running, ca: CA) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ca.client_context(ca.issue([NAME]))
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with edge.connect() as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(get("/scope"))
        sock.sendall(outgoing.read())
        incoming.write(sock.recv(65536))

        assert tls.read(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("connections", [50])
def test_many_handshakes_at_once_all_succeed(edge: Running, ca: CA, connections: int) -> None:
    context = ca.client_context(ca.issue([NAME]))
    plain = [edge.connect() for _ in range(connections)]
    for sock in plain:
        with context.wrap_socket(sock, server_hostname="localhost") as secure:
            secure.sendall(get("/scope", "Connection: close"))
            assert b" 200 " in read_all(secure)


async def test_httpx_and_aiohttp_are_served(edge: Running, ca: CA) -> None:
    context = ca.client_context(ca.issue([NAME]))
    url = f"https://localhost:{edge.port}/scope"
    async with httpx.AsyncClient(verify=context) as client:
        replies = [(await client.get(url)).status_code for _ in range(3)]
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as reply:
        replies.append(reply.status)

    assert replies == [200] * 4
