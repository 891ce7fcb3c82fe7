"""The proxy shows the service its certificate, and believes nobody else to be the service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cachesvc import certificates
from cachesvc.client import CacheClient
from cachesvc.service.run import serve as serve_service
from cachesvc.settings import Embed, Identity, Proxy, ProxyTLS, Service, ServiceTLS, Settings
from tests.proxy.rig import PATH, SECRET, chat_body, eventually, numbered, started
from tests.servers import RawServer, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ALICE = [("authorization", "Bearer alice")]


@asynccontextmanager
async def _service(database_url: str, files: dict[str, Path]) -> AsyncIterator[str]:
    stop, urls = asyncio.Event(), asyncio.Queue[list[str]]()
    service = Service(
        listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
        database_url=database_url,
        tls=ServiceTLS(
            cert_file=str(files["service.pem"]),
            key_file=str(files["service.key"]),
            client_ca_file=str(files["ca.pem"]),
        ),
    )
    identities = tuple(
        Identity(san=f"URI:spiffe://cachesvc/acme/{name}", tenant="acme", roles=(role,))
        for name, role in (("client", "data"), ("admin", "admin"))
    )
    settings = Settings(service=service, identity=identities)
    serving = asyncio.create_task(serve_service(settings, ready=urls.put_nowait, stop=stop))
    try:
        yield (await urls.get())[0]
    finally:
        stop.set()
        await serving


def _proxy(service_url: str, upstream_url: str, files: dict[str, Path], ca: Path) -> Settings:
    tls = ProxyTLS(
        cert_file=str(files["client.pem"]), key_file=str(files["client.key"]), ca_file=str(ca)
    )
    proxy = Proxy(
        listen="127.0.0.1:0",
        upstream=upstream_url,
        service_url=service_url,
        scope_secret=SECRET,
        lookup_budget_ms=20_000,
        tls=tls,
    )
    return Settings(proxy=proxy, embed=Embed(provider="none"))


def _make_policy(url: str, files: dict[str, Path]) -> None:
    ca, certificate, key = (str(files[name]) for name in ("ca.pem", "admin.pem", "admin.key"))
    with CacheClient(url, ca_file=ca, cert_file=certificate, key_file=key) as client:
        client.save_policy("p", {})


async def test_a_hit_over_mutual_tls(database_url: str, tmp_path: Path) -> None:
    files = certificates.make(tmp_path / "certs", tenant="acme", force=False).files
    async with _service(database_url, files) as url, RawServer(numbered()) as upstream:
        await asyncio.to_thread(_make_policy, url, files)
        async with started(_proxy(url, upstream.url, files, files["ca.pem"])) as proxy:
            assert (await ask(proxy, "POST", PATH, ALICE, chat_body())).status == 200

            async def hits() -> bool:
                got = await ask(proxy, "POST", PATH, ALICE, chat_body())
                return got["x-ai-cache-status"] == "HIT"

            await eventually(hits)


async def test_a_service_of_another_ca_is_no_service(database_url: str, tmp_path: Path) -> None:
    files = certificates.make(tmp_path / "certs", tenant="acme", force=False).files
    others = certificates.make(tmp_path / "other", tenant="acme", force=False).files
    async with (
        _service(database_url, files) as url,
        RawServer(numbered()) as upstream,
        started(_proxy(url, upstream.url, files, others["ca.pem"])) as proxy,
    ):
        got = await ask(proxy, "POST", PATH, ALICE, chat_body())
        assert (got.status, got["x-ai-cache-status"]) == (200, None)
        assert (await ask(proxy, "GET", "/readyz")).status == 503
