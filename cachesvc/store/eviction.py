"""What has to go when a policy, or a tenant, holds more than it may: what is worth least.

The value of an entry is (1 + hits) * tokens / bytes, halved with every quarter of its policy's TTL
that it was not asked for: GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998) with the recency of
LRFU (Lee et al., IEEE ToC 2001). Without hits, and all else equal, the oldest go.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from uuid import UUID

from cachesvc.store.base import Room
from cachesvc.store.patience import BATCH, patient
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from cachesvc.store.pool import Database

# Ranking reads every entry, 3 s for 300,000 of them. Where there are more, a random sample is held
# to its share of the limit, as Redis evicts (antirez, "Random notes on improving the Redis LRU").
_ALL = 400_000
_SAMPLED = 100_000
_RANKED = 20  # batches removed by one ranking, which reads everything that lives


class Eviction:
    """The part of an AdminStore that holds limits."""

    _database: Database

    async def limited(self) -> list[Room]:
        rows = await self._database.rows(statement("limited_policies"))
        return [
            Room(row["tenant"], row["id"], row["max_entries"], row["max_bytes"]) for row in rows
        ]

    async def tenants(self) -> list[str]:
        return [row["tenant"] for row in await self._database.rows(statement("every_tenant"))]

    async def remove_overflow(self, room: Room) -> int:
        """Nothing is ranked, or locked, while what there is fits, dead rows included."""
        if room.max_entries is None and room.max_bytes is None:
            return 0
        async with patient(self._database) as connection:
            used = await connection.fetchrow(statement("used"), room.tenant, room.policy_id)
        entries = used["entries"]
        if not room.overflows(entries, used["bytes"]):
            return 0
        first, share = (None, 1.0) if entries <= _ALL else _stretch(entries)
        async with patient(self._database) as connection:
            rows = await connection.fetch(
                statement("least_valued"),
                room.tenant,
                room.policy_id,
                None if room.max_entries is None else int(room.max_entries * share),
                None if room.max_bytes is None else int(room.max_bytes * share),
                BATCH * _RANKED,
                first,
                None if first is None else _SAMPLED,
            )
        ids, gone = [row["id"] for row in rows], 0
        for start in range(0, len(ids), BATCH):
            async with patient(self._database) as connection:
                gone += await connection.fetchval(
                    statement("evict"), room.tenant, ids[start : start + BATCH]
                )
        return gone


def _stretch(entries: int) -> tuple[UUID, float]:
    """An id from which at least `_SAMPLED` of so many entries follow, and what share those are."""
    share = _SAMPLED / entries
    return UUID(int=int(random.random() * max(0.0, 1 - 1.2 * share) * 2**128)), share
