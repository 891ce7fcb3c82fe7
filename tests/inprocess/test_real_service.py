"""The cache inside a client and a proxy beside it, before one service with a real database."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest

from cachesvc import CachingTransport, certificates
from tests.inprocess.rig import inside
from tests.inprocess.test_transport import HEADERS, PACKAGES, post
from tests.proxy.rig import (
    PATH,
    SECRET,
    STREAM,
    always,
    chat_body,
    completion,
    events,
    eventually,
    started,
)
from tests.proxy.test_tls import _make_policy, _proxy, _service
from tests.servers import RawServer, answer, ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.servers import Seen, Wire

    Ask = Callable[[bytes], Awaitable["Reply"]]

ALICE = {"authorization": "Bearer alice"}


async def _script(seen: Seen, wire: Wire) -> None:
    if json.loads(seen.body).get("stream"):
        await wire.send(answer(events("Hi", "é"), media_type=STREAM, framing="chunked"))
    else:
        await wire.send(answer(completion("Hi")))


def _transport(
    folder: Path, service: str, upstream: str, files: dict[str, Path], ca: Path
) -> CachingTransport:
    return CachingTransport(
        service_url=service,
        scope_secret=SECRET,
        settings={
            "data_dir": str(folder),
            "embed.provider": "none",
            "proxy.upstream": upstream,
            "proxy.lookup_budget_ms": 20_000,
            "proxy.tls.cert_file": str(files["client.pem"]),
            "proxy.tls.key_file": str(files["client.key"]),
            "proxy.tls.ca_file": str(ca),
        },
    )


@dataclass(frozen=True)
class Reply:
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> str:
        return self.headers["x-ai-cache-status"]


async def _shared(first: Ask, other: Ask, asked: bytes, upstream: RawServer) -> None:
    """What `first` has asked is known to `other`, by the same bytes under the same names."""

    async def hits() -> bool:
        return (await first(asked)).status == "HIT"

    miss = await first(asked)
    assert miss.status == "MISS"
    await eventually(hits)
    calls = len(upstream.seen)
    mine, found = await first(asked), await other(asked)
    assert (mine.status, found.status) == ("HIT", "HIT")
    assert miss.body == mine.body == found.body
    assert set(mine.headers) == set(found.headers)
    same = ("content-type", "content-length", "x-ai-cache-tier", "x-ai-cache-entry-id")
    assert [mine.headers[name] for name in same] == [found.headers[name] for name in same]
    assert len(upstream.seen) == calls


async def test_one_entry_serves_both_a_proxy_and_a_transport_over_mutual_tls(
    database_url: str, tmp_path: Path
) -> None:
    files = certificates.make(tmp_path / "certs", tenant="acme", force=False).files
    async with _service(database_url, files) as service, RawServer(_script) as bare:
        await asyncio.to_thread(_make_policy, service, files)
        upstream = f"{bare.url}/api"  # the proxy appends the path, the client's URL has it all
        settings = _proxy(service, upstream, files, files["ca.pem"])
        # The transport's own upstream is another: the name is that of the URL that is called.
        args = (tmp_path, service, "https://api.openai.com", files, files["ca.pem"])
        transport = await asyncio.to_thread(_transport, *args)

        async def here(asked: bytes) -> Reply:
            got = await post(httpx2, "async", transport, f"{upstream}{PATH}", asked, **ALICE)
            return Reply(dict(got.headers), got.content)

        try:
            async with started(settings) as url:

                async def there(asked: bytes) -> Reply:
                    got = await ask(url, "POST", PATH, [*ALICE.items()], asked)
                    return Reply({k.lower(): v for k, v in got.headers}, got.body)

                for stream in (False, True):
                    await _shared(there, here, chat_body("one", stream=stream), bare)
                    await _shared(here, there, chat_body("two", stream=stream), bare)
        finally:
            await transport.aclose()


async def test_a_service_of_another_ca_is_no_service(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachesvc.inprocess.thread._WARM_WITHIN_SECONDS", 0.5)
    files = certificates.make(tmp_path / "certs", tenant="acme", force=False).files
    others = certificates.make(tmp_path / "other", tenant="acme", force=False).files
    async with _service(database_url, files) as service, RawServer(_script) as upstream:
        args = (tmp_path, service, upstream.url, files, others["ca.pem"])
        transport = await asyncio.to_thread(_transport, *args)
        try:
            url = f"{upstream.url}{PATH}"
            got = await post(httpx, "async", transport, url, chat_body(), **ALICE)
            assert (got.status_code, "x-ai-cache-status" in got.headers) == (200, False)
        finally:
            await transport.aclose()


async def test_one_callers_answer_is_no_others(database_url: str, tmp_path: Path) -> None:
    files = certificates.make(tmp_path / "certs", tenant="acme", force=False).files
    async with _service(database_url, files) as service, RawServer(_script) as upstream:
        await asyncio.to_thread(_make_policy, service, files)
        args = (tmp_path, service, upstream.url, files, files["ca.pem"])
        transport = await asyncio.to_thread(_transport, *args)
        url = f"{upstream.url}{PATH}"

        async def status(key: str) -> str:
            told = {"authorization": key}
            got = await post(httpx, "sync", transport, url, chat_body(), **told)
            return str(got.headers["x-ai-cache-status"])

        async def alice_hits() -> bool:
            return await status("Bearer alice") == "HIT"

        try:
            await eventually(alice_hits)
            assert await status("Bearer bob") == "MISS"
        finally:
            await transport.aclose()


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("package", PACKAGES)
async def test_an_upstreams_error_is_the_upstreams(
    tmp_path: Path, package: Any, colour: str
) -> None:
    headers = [("retry-after", "7"), ("x-should-retry", "false"), ("set-cookie", "a=b")]
    error = b'{"error": {"message": "slow down",  "code": null}}'
    script = always(answer(error, status="429 Too Many Requests", headers=headers))
    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        got = await post(package, colour, transport, rig.url, chat_body())
        async with package.AsyncClient() as bare:
            plain = await bare.post(rig.url, content=chat_body(), headers=HEADERS)
        assert (got.status_code, got.content) == (plain.status_code, plain.content)
        ours = {"x-ai-cache-status", "cache-status"}
        left = [pair for pair in got.headers.multi_items() if pair[0] not in ours]
        assert left == plain.headers.multi_items()
        assert (got.reason_phrase, got.http_version) == (plain.reason_phrase, plain.http_version)
        await asyncio.to_thread(transport.close)
        assert rig.service.puts == []
