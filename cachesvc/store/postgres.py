"""The hot path on Postgres: each verb is one statement and one round trip."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import numpy as np
from pgvector import HalfVector

from cachesvc.core.cells import cell_of, code_of
from cachesvc.core.decision import nearest_first
from cachesvc.core.model import Answer, Candidate
from cachesvc.core.policy import MAX_TTL_SECONDS, Policy, resolve
from cachesvc.core.vectors import similarity
from cachesvc.errors import Invalid, NotFound
from cachesvc.store.base import UNREAD, Found, PolicyRow, Stored
from cachesvc.store.bodies import packed, unpacked
from cachesvc.store.growing import GrowingLeaves
from cachesvc.store.layers import Lowest
from cachesvc.store.sql import plural, statement, statement_for
from cachesvc.store.whole import read_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesvc.core.vectors import Vector
    from cachesvc.store.base import Alias, ExactQuery, NearestQuery, NewEntry, Place
    from cachesvc.store.pool import Database
    from cachesvc.store.whole import WholeCell

_FOREVER = timedelta(days=365 * 1000)
# By so much the distance of two half-precision vectors may differ from what is judged. A miscalled
# one costs time, not a decision: an answer that is not there is read by its id.
_ROUNDING = 0.002
_KNOWN_FIELDS = frozenset(Policy.__struct_fields__)


class PostgresStore(Lowest):
    """Entries, aliases and policies in Postgres with pgvector: an EntryStore."""

    def __init__(self, database: Database, *, growing: GrowingLeaves | None = None) -> None:
        """`growing` is shared by stores that put and search for each other."""
        self._database = database
        self.growing = GrowingLeaves() if growing is None else growing

    async def policy(self, tenant: str, policy_id: str) -> PolicyRow | None:
        row = await self._database.row(statement("policy"), tenant, policy_id)
        return None if row is None else read_policy_row(row)

    async def find_exact(self, query: ExactQuery) -> Found:
        place = query.place
        rows = await self._database.lookups.rows(
            plural("find_exact"),
            place.tenant,
            place.policy_id,
            place.scope,
            query.exact_key,
            _oldest(query.max_age_seconds),
            query.space,
            query.partition,
        )
        found = _stored(rows)
        found.sort(key=lambda row: bool(row["alias"]))
        candidates, dead = [], None
        for row in found:
            if not row["lives"]:
                dead = dead or ("quarantined" if row["quarantined"] else "expired")
            elif row["young"]:
                candidates.append(_candidate(row, row["similarity"], alias=row["alias"]))
        first = rows[0]
        return Found(first["revision"], first["generation"], first["now"], tuple(candidates), dead)

    async def find_nearest(self, query: NearestQuery) -> Found:
        rows = await self._nearest(query)
        # The index compares halves with halves. What is judged is the query itself with the stored
        # halves; equal ones go by age.
        found = [
            _candidate(row, similarity(query.vector, row["embedding"].astype(np.float64)))
            for row in _stored(rows)
        ]
        return Found(
            revision=rows[0]["revision"],
            generation=rows[0]["generation"],
            now=rows[0]["now"],
            candidates=tuple(nearest_first(found, query.top_k)),
        )

    async def _nearest(self, query: NearestQuery) -> list[Any]:
        """One statement, as long as what was learnt of the cell still holds."""
        place, size = query.place, query.vector.size
        cell = _cell(place, query.space, size, query.partition)
        most = self.growing.bounds(size).cell  # rows of it, or of a leaf, that are read
        asked = (
            place.tenant,
            place.policy_id,
            place.scope,
            query.space,
            query.partition,
            HalfVector(query.vector),
            query.top_k,
            _oldest(query.max_age_seconds),
            query.served_from - _ROUNDING,
        )
        if not self.growing.is_split(cell):
            scan = statement_for("scan_cell", size)
            rows = await self._database.search(scan, *asked, cell, most)
            if not rows or not rows[0]["split"]:
                if rows and (rows[0]["live"] or 0) > most:
                    self.growing.searched(place.tenant, cell)
                return rows
        coded = _coded(query.vector, cell)
        nearest = statement_for("find_nearest", size)
        rows = await self._database.search(nearest, *asked, coded, cell, most)
        if rows:
            self.growing.found(cell, split=rows[0]["split"])
        return rows

    async def whole_cell(self, query: NearestQuery, most_rows: int) -> WholeCell | None:
        place, size = query.place, query.vector.size
        cell = _cell(place, query.space, size, query.partition)
        read, within = statement_for("whole_cell", size), (query.space, query.partition)
        asked = place.tenant, place.policy_id, place.scope, *within, cell, most_rows
        # Beside the lookups: no lookup waits for it, neither for a connection nor for the loop.
        async with self._database.transaction() as connection:
            rows = await connection.fetch(read, *asked)
        if not rows:
            raise NotFound("cache_policy not found")
        if rows[0]["live"] > most_rows:
            return None
        return await asyncio.to_thread(read_whole, rows[0], size)

    async def answer(self, place: Place, entry_id: UUID) -> Answer | None:
        row = await self._database.row(
            statement("answer"), place.tenant, place.policy_id, place.scope, entry_id
        )
        return None if row is None else _answer(row)

    async def put(self, entry: NewEntry) -> Stored:
        """Raises Invalid for an entry that no lookup could ever find."""
        if entry.exact_key is None and entry.vector is None:
            raise Invalid("embedding or exact_key is required")
        name = "put_by_prompt" if entry.exact_key is None else "put_by_exact_key"
        cell, vector = None, entry.vector
        if vector is not None:
            cell = _cell(entry.place, entry.space, vector.size, entry.partition)
        leaf = await self._leaf(entry.place.tenant, cell, vector)
        row = await self._database.row(statement(name), *await _values(entry, cell), leaf)
        if row is None:
            raise NotFound("cache_policy not found")
        if cell is not None and vector is not None and row["leaf"] is not None:
            self.growing.put(entry.place.tenant, row["leaf"], vector.size)
            if row["leaf"] != cell:
                self.growing.found(cell, split=True)
        newer = entry.generation is not None and entry.generation > row["current"]
        return Stored(row["id"], row["expires_at"], row["current"], newer, row["replaced"])

    async def _leaf(self, tenant: str, cell: bytes | None, vector: Vector | None) -> bytes | None:
        """Where it belongs; None where its cell is not split, as far as is known."""
        if cell is None or vector is None or not self.growing.is_split(cell):
            return None
        row = await self._database.row(
            statement_for("nearest_leaf", vector.size),
            *(tenant, cell, HalfVector(vector), _coded(vector, cell)),
        )
        return None if row is None else row["leaf"]

    async def add_aliases(self, aliases: Sequence[Alias]) -> None:
        if not aliases:
            return
        columns = zip(*(_alias_values(alias) for alias in aliases), strict=True)
        arrays = [list(column) for column in columns]
        await self._database.rows(statement("add_aliases"), aliases[0].place.tenant, *arrays)


def read_policy_row(row: Any) -> PolicyRow:
    """A row of `policies`. Fields that only a newer release knows are passed over."""
    document = msgspec.json.decode(row["document"])
    known = {name: value for name, value in document.items() if name in _KNOWN_FIELDS}
    policy = msgspec.convert(known, Policy)
    return PolicyRow(resolve(policy, row["id"], row["generation"]), row["revision"])


def prompt_hash(prompt_text: str) -> bytes:
    return hashlib.sha256(prompt_text.encode()).digest()


def _stored(rows: list[Any]) -> list[Any]:
    """The rows that hold an entry: a policy that found none gives one row without.

    Raises NotFound when there is no such policy.
    """
    if not rows:
        raise NotFound("cache_policy not found")
    return [row for row in rows if row["id"] is not None]


def _candidate(row: Any, similarity: float | None, *, alias: bool = False) -> Candidate:
    answer = UNREAD if row["body"] is None else _answer(row)
    return Candidate(
        row["id"], answer, row["created_at"], row["expires_at"], similarity, alias=alias
    )


def _answer(row: Any) -> Answer:
    return Answer(
        unpacked(row["body"], row["inflated_bytes"]),
        row["media_type"],
        row["prompt_tokens"],
        row["completion_tokens"],
        row["upstream_ms"],
    )


def _oldest(max_age_seconds: float | None) -> timedelta:
    if max_age_seconds is None or max_age_seconds >= _FOREVER.total_seconds():
        return _FOREVER
    return timedelta(seconds=max_age_seconds)


def _cell(place: Place, space: str, dimensions: int, partition: bytes) -> bytes:
    return cell_of(place.tenant, place.policy_id, place.scope, space, dimensions, partition)


def _coded(vector: Vector, cell: bytes) -> HalfVector:
    """As the HNSW index has it."""
    return HalfVector(np.concatenate([vector, code_of(cell)]))


def _alias_values(alias: Alias) -> tuple[object, ...]:
    place = alias.place
    return (
        place.policy_id,
        place.scope,
        alias.exact_key,
        alias.entry_id,
        alias.similarity,
        alias.revision,
    )


async def _values(entry: NewEntry, cell: bytes | None) -> tuple[object, ...]:
    """The parameters that both puts share, in their order, but the last."""
    ttl, vector = entry.ttl_seconds, entry.vector
    stored, inflated_bytes = await packed(entry.answer.body)
    return (
        entry.place.tenant,
        entry.place.policy_id,
        entry.place.scope,
        entry.exact_key,
        entry.space,
        entry.partition,
        prompt_hash(entry.prompt_text),
        None if vector is None else HalfVector(vector),
        stored,
        entry.answer.media_type,
        entry.prompt_text.encode(),
        entry.answer.prompt_tokens,
        entry.answer.completion_tokens,
        entry.model,
        list(entry.tags),
        entry.answer.upstream_ms,
        entry.generation,
        entry.provenance,
        None if ttl is None else min(ttl, MAX_TTL_SECONDS),
        uuid4(),
        cell,
        inflated_bytes,
    )
