"""With TLS the service listens twice: for callers with certificates, and openly for probes."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import httpx

from cachesvc.certificates import make
from cachesvc.service.run import serve
from cachesvc.settings import Identity, Service, ServiceTLS, Settings
from tests.service.serving import KEY

if TYPE_CHECKING:
    from pathlib import Path

OPEN = ("/livez", "/readyz", "/metrics", "/openapi.json")


def context(folder: Path, name: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=folder / "ca.pem")
    made.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return made


async def test_open_paths_have_a_listener_of_their_own(database_url: str, tmp_path: Path) -> None:
    make(tmp_path, tenant="acme", force=True)
    files = (str(tmp_path / name) for name in ("service.pem", "service.key", "ca.pem"))
    sans = {name: f"URI:spiffe://cachesvc/acme/{name}" for name in ("client", "admin")}
    service = Service(
        listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
        database_url=database_url,
        tls=ServiceTLS(cert_file=next(files), key_file=next(files), client_ca_file=next(files)),
    )
    identities = (
        Identity(tenant="acme", roles=("data",), san=sans["client"]),
        Identity(tenant="acme", roles=("admin",), san=sans["admin"]),
    )
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = Settings(service=service, identity=identities)
    serving = asyncio.create_task(serve(settings, ready=ready.set_result, stop=stop))
    main, probes = await asyncio.wait_for(ready, 10)
    async with (
        httpx.AsyncClient(base_url=main, verify=context(tmp_path, "admin")) as admin,
        httpx.AsyncClient(base_url=main, verify=context(tmp_path, "client")) as client,
        httpx.AsyncClient(base_url=probes) as anybody,
    ):
        assert (await admin.put("/policies/p", json={"sharing": "shared"})).status_code == 201
        assert (await client.put("/policies/p", json={})).status_code == 403
        put = {"policy_id": "p", "exact_key": KEY, "response": 1}
        entry = (await client.post("/cache/put", json=put)).json()["entry_id"]
        shown = (await admin.get(f"/cache/entries/{entry}")).json()
        assert shown["provenance"] == sans["client"]
        for path in OPEN:
            assert (await anybody.get(path)).status_code == 200
            assert (await client.get(path)).status_code == 404
        assert (await anybody.get("/policies")).status_code == 404
        told = (await anybody.get("/metrics")).text
        assert 'cachesvc_entries{policy="p"} 1.0' in told
        assert "acme" not in told
    stop.set()
    await serving
