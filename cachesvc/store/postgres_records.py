"""Verdicts and shadow hits on Postgres."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from pgvector import HalfVector

from cachesvc.store.patience import BATCH, patient
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesvc.store.pool import Database
    from cachesvc.store.records import HitCount, NewVerdict, ShadowHit

# What is kept of each policy, at most: so many, and so long.
_KEPT = {
    "trim_shadow_hits": (10_000, timedelta(days=30)),
    "trim_verdicts": (100_000, timedelta(days=400)),
}


class PostgresRecords:
    """What was said of answers, and what would have been served: a RecordStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def give_verdict(self, verdict: NewVerdict) -> tuple[str, bool] | None:
        prompt, vector = verdict.prompt_text, verdict.vector
        row = await self._database.row(
            statement("give_verdict"),
            verdict.tenant,
            verdict.entry_id,
            verdict.scope,
            "wrong" if verdict.wrong else "right",
            verdict.source,
            None if prompt is None else prompt.encode(),
            None if vector is None else HalfVector(vector),
            verdict.note,
            uuid4(),
            verdict.lifts,
        )
        return None if row["policy_id"] is None else (row["policy_id"], row["quarantined"])

    async def keep_shadow_hits(self, hits: Sequence[ShadowHit]) -> None:
        await self._write("keep_shadow_hits", [(hit.place.tenant, _values(hit)) for hit in hits])

    async def count_hits(self, counts: Sequence[HitCount]) -> None:
        rows = [(one.tenant, (one.entry_id, one.hits, one.tokens)) for one in counts]
        await self._write("count_hits", rows)

    async def _write(self, name: str, rows: Sequence[tuple[str, tuple[object, ...]]]) -> None:
        """(tenant, row): a statement for each tenant, which takes an array of each column."""
        by_tenant: defaultdict[str, list[tuple[object, ...]]] = defaultdict(list)
        for tenant, row in rows:
            by_tenant[tenant].append(row)
        values = [
            (tenant, *map(list, zip(*theirs, strict=True)))
            for tenant, theirs in sorted(by_tenant.items())
        ]
        await self._database.write(statement(name), values)

    async def trim(self) -> int:
        removed = 0
        for policy in await self._database.rows(statement("every_policy")):
            for name, (most, longest) in _KEPT.items():
                async with patient(self._database) as connection:
                    removed += await connection.fetchval(
                        statement(name), policy["tenant"], policy["id"], most, longest, BATCH
                    )
            removed += await self._trim_hit_counts(policy["tenant"], policy["id"])
        return removed

    async def _trim_hit_counts(self, tenant: str, policy_id: str) -> int:
        async with patient(self._database) as connection:
            gone: int = await connection.fetchval(
                statement("trim_hit_counts"), tenant, policy_id, BATCH
            )
        return gone


def _values(hit: ShadowHit) -> tuple[object, ...]:
    return (
        uuid4(),
        hit.place.policy_id,
        hit.place.scope,
        hit.exact_key,
        hit.entry_id,
        hit.tier,
        hit.similarity,
        hit.prompt_text.encode(),
        hit.asked_at,
    )
