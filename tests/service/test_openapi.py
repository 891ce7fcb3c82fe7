"""The OpenAPI document tells the routes there are, and every reference in it leads somewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from cachesvc.service.app import create_app, create_open_app
from cachesvc.service.endpoint import Endpoint
from cachesvc.service.openapi import document
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import ServiceTLS, Settings
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.postgres_records import PostgresRecords
from tests.service.serving import NOWHERE, Named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.service.app import App
    from tests.service.serving import Api

OPEN = {"/livez", "/readyz", "/metrics", "/openapi.json"}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    made: dict[str, Any] = msgspec.json.decode(document())
    return made


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_resolves(told: dict[str, Any]) -> None:
    found = set(references(told))
    assert len(found) > 20
    for reference in found:
        node = told
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_its_shape_is_that_of_openapi_3_1(told: dict[str, Any]) -> None:
    assert told["openapi"] == "3.1.0"
    assert set(told["info"]) >= {"title", "version"}
    ids = []
    for path, operations in told["paths"].items():
        for operation in operations.values():
            ids.append(operation["operationId"])
            parameters = operation.get("parameters", ())
            names = {one["name"] for one in parameters if one["in"] == "path"}
            assert names == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert operation["responses"]
    assert len(ids) == len(set(ids))


def test_bodies_come_in_both_formats(told: dict[str, Any]) -> None:
    lookup = told["paths"]["/cache/lookup"]["post"]
    for content in (lookup["requestBody"]["content"], lookup["responses"]["200"]["content"]):
        assert set(content) == {"application/json", "application/msgpack"}
    assert {"400", "401", "403", "404", "413", "415", "422", "500", "503"} < set(
        lookup["responses"]
    )


def test_bounds_are_told(told: dict[str, Any]) -> None:
    fields = told["components"]["schemas"]["LookupRequest"]["properties"]
    assert fields["policy_id"]["pattern"] == "^[A-Za-z0-9._:~-]{1,128}$"
    assert "Policy" in told["components"]["schemas"]


async def app(settings: Settings) -> tuple[App, App]:
    database = await connect(NOWHERE)
    store, admin, telemetry = PostgresStore(database), PostgresAdmin(database), Telemetry(settings)
    made = create_app(settings, store, admin, PostgresRecords(database), Named(), telemetry)
    await database.close()
    return made, create_open_app(settings, admin, telemetry)


def routes(app: App) -> dict[str, set[str]]:
    endpoints = {route.path: cast(Endpoint, route.endpoint) for route in app.routes}
    return {path: {m.lower() for m in one.handlers} for path, one in endpoints.items()}


async def test_every_route_is_told_and_nothing_else(told: dict[str, Any]) -> None:
    main, _ = await app(Settings())
    assert routes(main) == {path: set(methods) for path, methods in told["paths"].items()}


async def test_with_tls_the_open_routes_are_on_the_admin_listener_only() -> None:
    tls = ServiceTLS(cert_file="c", key_file="k", client_ca_file="a")
    settings = msgspec.structs.replace(
        Settings(), service=msgspec.structs.replace(Settings().service, tls=tls)
    )
    main, admin = await app(settings)
    assert set(routes(admin)) == OPEN
    assert not OPEN & set(routes(main))


def test_the_service_serves_it(nowhere: Api, told: dict[str, Any]) -> None:
    reply = nowhere.http.get("/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == told
