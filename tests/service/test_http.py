"""The shell around the handlers: media types, names, methods, paths, failures."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from cachesvc.service.app import create_app
from cachesvc.service.hosts import is_loopback_host
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Service, Settings
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.postgres_records import PostgresRecords
from tests.service.serving import (
    KEY,
    MESSAGEPACK,
    NOWHERE,
    Api,
    Named,
    Running,
    decoded,
    execute,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cachesvc.service.app import App

LOOKUP = {"policy_id": "p", "exact_key": KEY}


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", "multipart/a"],
)
def test_another_content_type_is_415(nowhere: Api, content_type: str) -> None:
    for path in ("/cache/lookup", "/dp/cache/put", "/cache/purge"):
        reply = nowhere.call("POST", path, b"{}", content_type=content_type)
        refused(reply, 415, "UNSUPPORTED_MEDIA_TYPE", "Content-Type")
    reply = nowhere.call("PUT", "/policies/p", b"{}", content_type=content_type)
    refused(reply, 415, "UNSUPPORTED_MEDIA_TYPE", "Content-Type")


def test_no_content_type_at_all_is_415(nowhere: Api) -> None:
    reply = nowhere.http.post("/cache/lookup", content=b"{}")
    assert "content-type" not in reply.request.headers
    refused(reply, 415, "UNSUPPORTED_MEDIA_TYPE")


def test_two_content_types_are_415(nowhere: Api) -> None:
    headers = [("content-type", "application/json"), ("content-type", "text/plain")]
    reply = nowhere.http.post("/cache/lookup", content=b"{}", headers=headers)
    refused(reply, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "deflate"])
def test_an_encoded_body_is_415(nowhere: Api, encoding: str) -> None:
    reply = nowhere.call("POST", "/cache/lookup", b"{}", content_encoding=encoding)
    refused(reply, 415, "UNSUPPORTED_MEDIA_TYPE", "Content-Encoding")


def test_identity_is_no_encoding(nowhere: Api) -> None:
    reply = nowhere.call("POST", "/cache/lookup", b"{}", content_encoding="Identity")
    refused(reply, 400, "BAD_REQUEST", "policy_id")


def test_415_comes_before_the_body_is_read(nowhere: Api) -> None:
    """The body that is announced never comes, and the refusal does."""
    url = nowhere.http.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=5) as client:
        client.sendall(
            b"POST /cache/lookup HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
            b"Content-Length: 1000000\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 415 ")


def test_413_comes_before_the_body_is_read(nowhere: Api) -> None:
    url = nowhere.http.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=5) as client:
        client.sendall(
            b"POST /cache/put HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        reply = client.recv(4096)
        assert reply.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in reply.lower()


@pytest.mark.parametrize(
    "path", ["/", "/cache", "/cache/", "/cache/lookup/", "/dp/policies", "/dp/livez", "/v1/x"]
)
def test_an_unknown_path_is_404_in_the_envelope(nowhere: Api, path: str) -> None:
    refused(nowhere.call("GET", path), 404, "NOT_FOUND", "path")
    packed = nowhere.call("POST", path, b"", content_type=MESSAGEPACK)
    assert packed.headers["content-type"] == MESSAGEPACK
    refused(packed, 404, "NOT_FOUND", "path")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/cache/lookup", "POST"),
        ("PATCH", "/policies/p", "GET, PUT, DELETE"),
        ("OPTIONS", "/cache/put", "POST"),
        ("DELETE", "/livez", "GET"),
        ("POST", "/stats", "GET"),
    ],
)
def test_another_method_is_405_and_told_which(
    nowhere: Api, method: str, path: str, allowed: str
) -> None:
    reply = nowhere.call(method, path)
    refused(reply, 405, "METHOD_NOT_ALLOWED", allowed)
    assert reply.headers["allow"] == allowed


def test_head_is_get_without_a_body(nowhere: Api) -> None:
    reply = nowhere.call("HEAD", "/livez")
    assert reply.status_code == 200
    assert reply.content == b""
    assert int(reply.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
def test_no_origin_is_ever_allowed(nowhere: Api, method: str) -> None:
    reply = nowhere.call(method, "/policies", origin="https://evil.example")
    assert not [name for name in reply.headers if name.startswith("access-control-")]


GOOD_HOSTS = [b"localhost", b"LocalHost:1", b"127.0.0.1:8700", b"127.9.8.7", b"[::1]", b"[::1]:1"]
BAD_HOSTS = [
    *(b"evil.example", b"localhost.evil.example", b"127.0.0.1.evil.example", b"127.0.0.1:80:80"),
    *(b"", b"::1", b"[127.0.0.1]", b"10.0.0.1", b"0.0.0.0", b"localhost@evil", b"127.0.0.256"),
    *(b"127.1", b"[::2]", b"localhost:x", b"\xff", "١٢٧.0.0.1".encode()),
]


def test_only_loopback_names_are_loopback() -> None:
    assert [host for host in GOOD_HOSTS if not is_loopback_host(host)] == []
    assert [host for host in BAD_HOSTS if is_loopback_host(host)] == []


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/policies", "/cache/lookup", "/nope"])
def test_a_name_that_is_not_loopback_is_403_everywhere(nowhere: Api, path: str) -> None:
    reply = nowhere.call("GET", path, host="rebound.example:8700")
    refused(reply, 403, "FORBIDDEN", "Host")


def test_whoever_starts_insecure_is_called_by_any_name() -> None:
    with Running(NOWHERE, {"insecure": True}) as service:
        reply = httpx.get(f"{service.url}/livez", headers={"host": "cache.example"})
        assert reply.status_code == 200


async def raw(app: Any, headers: list[tuple[bytes, bytes]], *bodies: bytes) -> list[dict[str, Any]]:
    """What an app sends to a lookup, straight on ASGI: servers would not let such requests in."""
    sent: list[dict[str, Any]] = []
    messages: Iterator[dict[str, Any]] = iter(
        {"type": "http.request", "body": body, "more_body": True} for body in bodies
    )

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/cache/lookup", "headers": headers}
    await app(scope, receive, send)
    return sent


@contextlib.asynccontextmanager
async def app_alone(**service: Any) -> AsyncIterator[App]:
    """An app without a server, on a database that does not exist."""
    settings = Settings(service=Service(**service))
    database = await connect(NOWHERE)
    store, admin = PostgresStore(database), PostgresAdmin(database)
    yield create_app(
        settings, store, admin, PostgresRecords(database), Named(), Telemetry(settings)
    )
    await database.close()


def headers(*more: tuple[bytes, bytes], host: bytes = b"localhost") -> list[tuple[bytes, bytes]]:
    return [(b"host", host), (b"content-type", b"application/json"), *more]


async def test_exactly_one_host_is_answered() -> None:
    async with app_alone() as app:
        for odd in (headers(host=b"evil"), headers((b"host", b"localhost")), headers()[1:]):
            assert (await raw(app, odd))[0]["status"] == 403
        assert (await raw(app, headers()))[0]["status"] == 400


async def test_a_content_length_that_lies_is_413_after_the_limit() -> None:
    async with app_alone(max_request_bytes=1024) as app:
        lying = headers((b"content-length", b"10"))
        sent = await raw(app, lying, b"x" * 1000, b"x" * 25, b"never read")
        assert sent[0]["status"] == 413


async def test_who_leaves_while_sending_gets_nothing_and_breaks_nothing() -> None:
    async with app_alone() as app:
        assert await raw(app, headers((b"content-length", b"10")), b"{") == []


def test_a_bug_is_500_without_detail_and_logged_by_request_id(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The database refuses a statement, and its message quotes what the row holds."""
    execute(database_url, "ALTER TABLE policies ADD CHECK (ttl_seconds < 10)")
    with Running(database_url) as service, contextlib.closing(Api(service.url)) as api:
        reply = api.call("PUT", "/policies/p", {"name": "a secret"}, x_request_id="req-7")
        refused(reply, 500, "INTERNAL", "x-request-id")
        assert reply.headers["x-request-id"] == "req-7"
        assert 'cachesvc_fail_open_total{cause="internal"}' in api.metrics()
        unnamed = api.call("PUT", "/policies/p", {})
        assert unnamed.headers["x-request-id"] in caplog.text
    assert "request req-7 failed: StoreRefused" in caplog.text
    assert "SQLSTATE 23514" in caplog.text
    assert "in save_policy" in caplog.text
    assert "secret" not in caplog.text + reply.text


def test_a_reply_says_its_length_and_nothing_of_the_server(nowhere: Api) -> None:
    reply = nowhere.call("POST", "/cache/lookup", LOOKUP)
    assert reply.headers["content-length"] == str(len(reply.content))
    assert "server" not in reply.headers
    assert decoded(reply)
