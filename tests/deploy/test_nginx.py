"""The nginx recipe, with the real nginx: what passes, and what happens when cachesvc is dead."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from cachesvc import certificates
from tests.deploy.processes import DEPLOY, Program, changed, free_port
from tests.deploy.provider import MODEL, Provider
from tests.end_to_end.stack import Up, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
_AROUND = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/cachesvc.conf;
}}
"""


@contextmanager
def nginx(
    folder: Path, cachesvc: str, provider: str, changes: dict[str, str] | None = None
) -> Iterator[str]:
    """The recipe's configuration at work, its addresses replaced; yields where it listens."""
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    recipe = changed(
        (DEPLOY / "nginx" / "cachesvc.conf").read_text("utf-8"),
        {
            "127.0.0.1:8701": cachesvc.removeprefix("http://"),
            "127.0.0.1:8080": address,
            "https://api.openai.com": provider,
            **(changes or {}),
        },
    )
    (folder / "cachesvc.conf").write_text(recipe, "utf-8")
    (folder / "nginx.conf").write_text(_AROUND.format(folder=folder), "utf-8")
    assert NGINX is not None
    words: list[str | Path] = [NGINX, "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]
    with Program(words, folder=folder / "run", answers=f"http://{address}/livez"):
        yield f"http://{address}"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(scope="module")
def up(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    with Up(folder / "data", "--upstream", provider.url) as running:
        yield running


@pytest.fixture(scope="module")
def client(
    up: Up, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A caller of nginx, with cachesvc behind it and the provider behind that."""
    folder = tmp_path_factory.mktemp("nginx") / "nginx"
    with (
        nginx(folder, up.proxy, provider.url) as url,
        httpx.Client(base_url=url, timeout=30, trust_env=False) as made,
    ):
        yield made


def chat(question: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], **more}


def ask(client: httpx.Client, question: str, **more: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=chat(question, **more))


@pytest.mark.parametrize("stream", [False, True])
def test_answers_pass_unchanged_with_what_the_cache_says_of_them(
    client: httpx.Client, provider: Provider, up: Up, stream: bool
) -> None:
    question = f"Does it pass unchanged, stream {stream}?"
    entries = up.entries()
    missed = ask(client, question, stream=stream)
    eventually(lambda: up.entries() == entries + 1)
    hit = ask(client, question, stream=stream)
    assert missed.content == hit.content == provider.sent[question]
    assert [r.headers["x-ai-cache-status"] for r in (missed, hit)] == ["MISS", "HIT"]
    assert missed.headers["cache-status"].startswith("cachesvc; fwd=miss")
    assert hit.headers["cache-status"].startswith("cachesvc; hit")
    assert "age" in hit.headers
    assert provider.times(question) == 1


def test_each_event_arrives_before_the_provider_has_sent_the_next(
    client: httpx.Client, provider: Provider
) -> None:
    question = "Is a stream held up?"
    provider.hold()
    try:
        provider.let_go()
        body = chat(question, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=body, timeout=5) as reply:
            pieces, got = reply.iter_bytes(), b""
            for number in (1, 2, 3):
                while got.count(b"\n\n") < number:
                    got += next(pieces)
                assert got.count(b"\n\n") == number
                provider.let_go()
            provider.release()
            assert got + b"".join(pieces) == provider.sent[question]
    finally:
        provider.release()


def test_a_body_larger_than_nginx_keeps_in_memory_arrives_whole(
    client: httpx.Client, provider: Provider
) -> None:
    question = "long " * 400_000
    assert ask(client, question).status_code == 200
    assert provider.asked[-1].question == question


@pytest.mark.parametrize("status", [429, 500, 502, 504])
def test_an_error_of_the_provider_passes_and_is_not_asked_for_twice(
    client: httpx.Client, provider: Provider, status: int
) -> None:
    reply = ask(client, f"status {status}")
    assert reply.status_code == status
    assert reply.json() == {"error": {"message": "provider"}}
    assert "cachesvc" in reply.headers["cache-status"]
    assert provider.times(f"status {status}") == 1


def test_a_header_with_underscores_reaches_cachesvc_and_the_provider(
    client: httpx.Client, provider: Provider
) -> None:
    headers = {"x-litellm-user_api_key_hash": "abc", "authorization": "Bearer sk-1"}
    client.post("/v1/chat/completions", json=chat("Underscores?"), headers=headers)
    assert headers.items() <= provider.asked[-1].headers.items()


def test_an_upgraded_connection_passes_both_ways(client: httpx.Client) -> None:
    offer = b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as caller, caller.makefile("rb") as answer:
        caller.sendall(offer + b"upgrade: websocket\r\n\r\nnot http\n")
        head = list(iter(answer.readline, b"\r\n"))
        assert head[0].startswith(b"HTTP/1.1 101 ")
        assert answer.readline() == b"NOT HTTP\n"


@pytest.mark.parametrize("page", ["livez", "readyz", "metrics"])
def test_the_pages_of_the_proxy_itself_are_not_for_callers(client: httpx.Client, page: str) -> None:
    assert client.get(f"/{page}").status_code == 404


def test_a_killed_cachesvc_falls_open_to_the_provider(provider: Provider, tmp_path: Path) -> None:
    with (
        Up(tmp_path / "data", "--upstream", provider.url) as up,
        nginx(tmp_path / "nginx", up.proxy, provider.url) as url,
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        assert ask(client, "Before it dies?").headers["x-ai-cache-status"] == "MISS"
        up.stop(signal.SIGKILL)
        for stream in (False, True):
            question = f"After it died, stream {stream}?"
            reply = ask(client, question, stream=stream)
            assert reply.status_code == 200
            assert reply.content == provider.sent[question]
            assert provider.times(question) == 1
            assert reply.headers["cache-status"] == "nginx; fwd=bypass; detail=cachesvc_is_away"
            assert "x-ai-cache-status" not in reply.headers


class ProviderWithTLS(Provider):
    """Under the name `localhost`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.ca = folder / "ca.pem"
        made = certificates.make(folder, tenant="test", force=False).files
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(made["service.pem"], made["service.key"])

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._context)


@pytest.mark.parametrize(("name", "status"), [("localhost", 200), ("api.openai.com", 502)])
def test_the_provider_is_fallen_back_to_by_the_name_in_its_certificate(
    tmp_path: Path, name: str, status: int
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with ProviderWithTLS(tmp_path / "pki") as provider:
        changes = {
            "/etc/ssl/certs/ca-certificates.crt": str(provider.ca),
            "$provider_host api.openai.com;": f"$provider_host {name};",
        }
        address = provider.url.replace("http://", "https://")
        with (
            nginx(tmp_path / "nginx", dead, address, changes) as url,
            httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
        ):
            assert ask(client, "Over TLS?").status_code == status
        assert provider.times("Over TLS?") == (status == 200)
