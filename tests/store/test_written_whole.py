"""What is written of several tenants at once is written for all of them, or for none."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.policy import Policy
from cachesvc.errors import StoreRefused
from cachesvc.store.base import Place
from cachesvc.store.pool import connect
from cachesvc.store.postgres_records import PostgresRecords
from cachesvc.store.records import HitCount
from tests.pgbouncer import pgbouncer
from tests.postgres import POLICY
from tests.store.entries import new

if TYPE_CHECKING:
    from tests.postgres import Stores

COUNTED = "SELECT tenant, hits FROM hit_counts ORDER BY tenant"


@pytest.mark.parametrize("pooler", [False, True])
async def test_hits_of_all_tenants_are_counted_or_of_none(stores: Stores, pooler: bool) -> None:
    counts = []
    for tenant in ("globex", "acme"):
        await stores.admin.save_policy(tenant, POLICY, Policy(sharing="shared"))
        put = await stores.entries.put(new("a", place=Place(tenant, POLICY, "shared")))
        assert put.entry_id
        counts.append(HitCount(tenant, put.entry_id, 2, 3))
    await stores.database.row("ALTER TABLE hit_counts ADD CHECK (tenant < 'g' OR hits < 4)")
    with pgbouncer(stores.url) if pooler else nullcontext(stores.url) as url:
        database = await connect(url, size=2, statement_timeout_ms=5000)
        records = PostgresRecords(database)
        await records.count_hits(counts)
        with pytest.raises(StoreRefused):
            await records.count_hits(counts)
        await records.count_hits(counts[1:])
        await records.count_hits([])
        await database.close()
    assert [tuple(row) for row in await stores.database.rows(COUNTED)] == [
        ("acme", 4),
        ("globex", 2),
    ]
