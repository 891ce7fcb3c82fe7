"""What a search finds is judged without its answers; what is served was read while it lived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from cachesvc.core.model import Answer, Hit, Miss, Reason
from cachesvc.core.policy import Policy
from cachesvc.service.asked import read_asked
from cachesvc.service.behind import behind
from cachesvc.service.bounds import Bounds
from cachesvc.service.lookup import Lookup
from cachesvc.service.policies import Policies
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Service, Settings
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Alias, Place
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.postgres_records import PostgresRecords
from cachesvc.wire import LookupRequest
from tests.postgres import POLICY, TENANT
from tests.store.entries import key, near, new, unit

if TYPE_CHECKING:
    from cachesvc.store.base import Found, NearestQuery
    from tests.postgres import Stores

QUERY = unit(1)
PLACE = Place(TENANT, POLICY, "shared")


class Forgetful(PostgresStore):
    """Never reads an answer along with a search; `between` runs before it is asked for one."""

    between: str = ""

    async def find_nearest(self, query: NearestQuery) -> Found:
        found = await super().find_nearest(structs.replace(query, served_from=9.0))
        if self.between:
            await self._database.row(self.between)
        return found


def lookup_on(store: PostgresStore) -> Lookup:
    settings = Settings(service=Service())
    telemetry = Telemetry(settings)
    bounds = Bounds.of_pool(settings.service)
    database = store._database
    off_path = behind(
        settings, store, PostgresAdmin(database), PostgresRecords(database), telemetry
    )
    return Lookup(store, Policies(store), off_path, telemetry, bounds)


async def judge(store: PostgresStore, **fields: Any) -> Hit | Miss:
    fields.setdefault("embedding", list(QUERY))
    request = LookupRequest(policy_id=POLICY, scope="shared", **fields)
    return (await lookup_on(store).look_up(read_asked(TENANT, request))).outcome


async def fill(stores: Stores, *cosines: float) -> None:
    await stores.admin.save_policy(TENANT, POLICY, Policy(sharing="shared", threshold=0.9))
    for number, cosine in enumerate(cosines):
        answer = Answer(b"%d" % number, None, number, number)
        entry = new(str(number), vector=near(QUERY, cosine, number), answer=answer)
        assert (await stores.entries.put(entry)).entry_id


@pytest.mark.parametrize("threshold", [None, 0.95, 0.98, 0.995])
async def test_an_outcome_is_the_same_whenever_its_answer_is_read(
    stores: Stores, threshold: float | None
) -> None:
    await fill(stores, 0.8, 0.93, 0.99, 0.96)
    usual = await judge(stores.entries, threshold=threshold)
    later = await judge(Forgetful(stores.database), threshold=threshold)
    assert usual == later
    if threshold == 0.995:
        assert (type(usual), usual.reason) == (Miss, Reason.BELOW_THRESHOLD)
        assert usual.similarity == pytest.approx(0.99, abs=1e-3)
    else:
        assert isinstance(usual, Hit)
        assert usual.candidate.answer == Answer(b"2", None, 2, 2)


async def test_an_answer_that_went_after_the_search_is_not_served(stores: Stores) -> None:
    await fill(stores, 0.99, 0.95)
    store = Forgetful(stores.database)
    first = await judge(store)
    assert isinstance(first, Hit)
    store.between = f"DELETE FROM entries WHERE id = '{first.candidate.entry_id}'"
    second = await judge(store)
    assert isinstance(second, Hit)
    assert second.candidate.answer.body == b"1"
    store.between = "UPDATE entries SET semantic_expires_at = now()"
    assert isinstance(await judge(store), Miss)


async def test_an_alias_of_another_space_or_partition_does_not_answer_whoever_names_his(
    stores: Stores,
) -> None:
    await fill(stores)
    stored = await stores.entries.put(new("origin", vector=QUERY, space="old"))
    assert stored.entry_id
    await stores.entries.add_aliases([Alias(PLACE, key("other"), stored.entry_id, 0.95)])
    asked: dict[str, Any] = {"exact_key": key("other").hex(), "embedding": None}
    for fields, reason in (
        ({}, Reason.ALIAS),
        ({"space": ""}, Reason.ALIAS),
        ({"space": "old"}, Reason.ALIAS),
        ({"space": "new"}, Reason.NO_ENTRY),
        ({"partition": key("p").hex()}, Reason.NO_ENTRY),
    ):
        assert (await judge(stores.entries, **asked, **fields)).reason is reason
