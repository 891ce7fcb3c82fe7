"""A database of an earlier release is upgraded with what it holds."""

from __future__ import annotations

import asyncio

import pytest
from pgvector import HalfVector

from cachesvc.core.policy import Policy
from cachesvc.errors import StoreUnavailable
from cachesvc.store import schema
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Alias
from cachesvc.store.migrate import downgrade, migrate_in_subprocess, status, upgrade
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore, prompt_hash
from cachesvc.store.postgres_records import PostgresRecords
from cachesvc.store.records import NewVerdict
from tests.postgres import POLICY, TENANT
from tests.store.entries import ANSWER, PLACE, exact, key, nearest, unit

# An entry as the first release wrote it.
_OLD_ENTRY = """
INSERT INTO entries (
    tenant, policy_id, scope, id, exact_key, space, partition, embedding, dimensions, body,
    media_type, prompt_hash, prompt_text, prompt_tokens, completion_tokens, model, tags,
    generation, provenance, created_at, exact_expires_at, semantic_expires_at
)
SELECT
    $1, $2, $3, gen_random_uuid(), $4, '', '', $5, 384, $6, 'application/json', $7, 'why?', 7, 11,
    '', '{}', 1, '', now(), now() + interval '1 hour', now() + interval '1 hour'
RETURNING id
"""


def _old_entry() -> tuple[object, ...]:
    place = PLACE.tenant, PLACE.policy_id, PLACE.scope
    return *place, key("a"), HalfVector(unit(1)), ANSWER.body, prompt_hash("why?")


async def test_a_database_of_the_first_release_is_upgraded_with_what_it_holds(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    await asyncio.to_thread(upgrade, url, "0001")
    before = await asyncio.to_thread(status, url)
    assert before.complaint == (
        f"the schema is at 0001, this release needs {schema.expected_revision()}: "
        "run cachesvc migrate"
    )
    database = await connect(url, size=4, statement_timeout_ms=5000)
    try:
        entries, admin = PostgresStore(database), PostgresAdmin(database)
        await admin.save_policy(TENANT, POLICY, Policy(sharing="shared", max_entries=5))
        entry_id = (await database.row(_OLD_ENTRY, *_old_entry()))["id"]
        await entries.add_aliases([Alias(PLACE, key("b"), entry_id, 0.95)])
        with pytest.raises(StoreUnavailable, match="run cachesvc migrate"):
            await admin.ping()
        await asyncio.to_thread(migrate_in_subprocess, url)
        await admin.ping()
        for name in ("a", "b"):
            (found,) = (await entries.find_exact(exact(name))).candidates
            assert found.entry_id == entry_id
        assert len((await entries.find_nearest(nearest(unit(1)))).candidates) == 1
        (count,) = await admin.counts(TENANT)
        assert (count.entries, count.aliases, count.shadow_hits) == (1, 1, 0)
        assert await admin.remove_overflow((await admin.limited())[0]) == 0
        wrong = NewVerdict(TENANT, entry_id, None, wrong=True, source="me", lifts=True)
        assert await PostgresRecords(database).give_verdict(wrong) == (POLICY, True)
        assert (await entries.find_exact(exact("a"))).dead == "quarantined"
        await asyncio.to_thread(downgrade, url, "0001")
        left = await database.rows("SELECT id, quarantined_at IS NOT NULL AS bad FROM entries")
        assert [tuple(row) for row in left] == [(entry_id, True)]
    finally:
        await database.close()
