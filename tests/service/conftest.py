"""One service and one database per module; each test takes a policy of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.postgres import _TEMPLATE, _own_database
from tests.service.serving import MESSAGEPACK, NOWHERE, Api, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.store.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def module_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a migrated database of this module's own."""
    yield from _own_database(postgres, _TEMPLATE)


@pytest.fixture(scope="module")
def running(module_database_url: str) -> Iterator[Running]:
    """A service on this module's database."""
    with Running(module_database_url) as service:
        yield service


@pytest.fixture(scope="module")
def api(running: Running) -> Iterator[Api]:
    """Calls as the local caller, in JSON."""
    yield from _api(Api(running.url))


@pytest.fixture(scope="module")
def other_replica(module_database_url: str) -> Iterator[Api]:
    """Calls to a second service on the same database."""
    with Running(module_database_url) as service:
        yield from _api(Api(service.url))


@pytest.fixture(scope="module")
def packed(running: Running) -> Iterator[Api]:
    """Calls as the local caller, in MessagePack."""
    yield from _api(Api(running.url, format=MESSAGEPACK))


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Api]:
    """Calls to a service whose database does not exist: whatever is refused needed no query."""
    with Running(NOWHERE) as service:
        yield from _api(Api(service.url))


def _api(api: Api) -> Iterator[Api]:
    yield api
    api.close()
