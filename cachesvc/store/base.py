"""The store's port: what the service asks of a database, in the core's nouns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from msgspec import Struct

from cachesvc.core.model import Answer, Candidate
from cachesvc.core.vectors import Vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesvc.core.policy import Policy


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A policy as it stands; every change of it, or of its generation, changes `revision`."""

    policy: Policy  # resolved: every default written out, generation included
    revision: int

    @property
    def generation(self) -> int:
        return self.policy.generation


UNREAD = Answer(b"", None)
"""Stands, by identity, for an answer that was not read from the database: never to be served."""


class Place(Struct, frozen=True):
    """What isolates: whose, under which policy, shared with whom. Every query carries it."""

    tenant: str
    policy_id: str
    scope: str


class Found(Struct, frozen=True):
    """What one query found, with the policy's revision it was judged under.

    `candidates` nearest first, ties to the newest. `dead` tells why an exact key that is stored
    does not answer ("expired" or "quarantined"); None where nothing is stored under it. `now` is
    the database's clock; by up to `behind` seconds this may be older than the asking.
    """

    revision: int
    generation: int
    now: datetime
    candidates: tuple[Candidate, ...] = ()
    dead: str | None = None
    behind: float = 0.0


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What a put asks to be kept."""

    place: Place
    answer: Answer
    exact_key: bytes | None = None  # 32 bytes
    partition: bytes = b""  # 32 bytes, or empty: an absent partition is its own
    space: str = ""
    vector: Vector | None = None
    prompt_text: str = ""
    ttl_seconds: int | None = None
    generation: int | None = None  # None: the policy's current one
    tags: tuple[str, ...] = ()
    model: str = ""
    provenance: str = ""  # who put it: the caller's identity and request id, for the audit trail


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a put. `entry_id` is None when it was dropped as `stale_generation`.

    `current` is the policy's generation when the put was judged; `newer` is True when the put
    named a generation that does not exist yet (the service answers 422); `replaced` when there was
    something to answer in its place before.
    """

    entry_id: UUID | None
    expires_at: datetime | None
    current: int
    newer: bool = False
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """What a purge selects: and-ed; None selects everything."""

    tenant: str
    policy_id: str | None = None
    scope: str | None = None
    tags: tuple[str, ...] | None = None
    model: str | None = None
    older_than_seconds: float | None = None
    prompt_text: str | None = None
    entry_id: UUID | None = None

    @property
    def whole_policy(self) -> bool:
        """Nothing but a policy is named: the oldest readable generation moves too."""
        others = (self.scope, self.tags, self.model, self.older_than_seconds, self.prompt_text)
        return (
            self.policy_id is not None and self.entry_id is None and all(o is None for o in others)
        )


@dataclass(frozen=True, slots=True)
class Room:
    """What a policy may hold, or a whole tenant where `policy_id` is None; None is no limit."""

    tenant: str
    policy_id: str | None
    max_entries: int | None = None
    max_bytes: int | None = None  # of bodies, prompts and vectors

    def overflows(self, entries: int, bytes: int) -> bool:
        """Whether so much does not fit."""
        too_many = self.max_entries is not None and entries > self.max_entries
        return too_many or (self.max_bytes is not None and bytes > self.max_bytes)


@dataclass(frozen=True, slots=True)
class Listing:
    """Which entries a list shows, and-ed; None shows everything.

    `prompt` is part of a prompt, in any case. `state` is live, expired or quarantined. `after` is
    when the last entry of the page before was made, and its id.
    """

    tenant: str
    policy_id: str | None = None
    scope: str | None = None
    tags: tuple[str, ...] | None = None
    model: str | None = None
    older_than_seconds: float | None = None
    tier: str | None = None
    prompt: str | None = None
    state: str | None = None
    after: tuple[datetime, UUID] | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One entry as an operator sees it. In a list `answer.body` is empty: none is read for it.

    `state` is live while it may answer on a tier, else quarantined or expired.
    """

    entry_id: UUID
    place: Place
    answer: Answer
    exact_key: bytes | None
    partition: bytes
    space: str
    dimensions: int | None
    prompt_text: str
    model: str
    tags: tuple[str, ...]
    generation: int
    provenance: str
    created_at: datetime
    exact_expires_at: datetime | None  # None: not on that tier
    semantic_expires_at: datetime | None
    aliases: int
    state: str
    body_bytes: int
    hits: int = 0
    last_hit_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PolicyCount:
    """What one policy holds: rows not yet removed, expired or not."""

    policy_id: str
    entries: int
    aliases: int
    body_bytes: int
    oldest_created_at: datetime | None
    generation: int
    shadow_hits: int = 0


class ExactQuery(Struct, frozen=True):
    """`space` and `partition`, where they are not empty, are what an alias's entry must be of."""

    place: Place
    exact_key: bytes
    max_age_seconds: float | None = None
    space: str = ""
    partition: bytes = b""


class NearestQuery(Struct, frozen=True):
    """`served_from` is the similarity from which the nearest candidate's answer is wanted."""

    place: Place
    partition: bytes
    space: str
    vector: Vector
    top_k: int = 4
    max_age_seconds: float | None = None
    served_from: float = -1.0

    def __repr__(self) -> str:
        return f"NearestQuery({self.place!r}, {self.space!r})"


class Alias(Struct, frozen=True):
    """What an exact key is answered by; `revision` is the policy's it was judged under, or any."""

    place: Place
    exact_key: bytes
    entry_id: UUID
    similarity: float
    revision: int | None = None


class EntryStore(Protocol):
    """The hot path: six verbs. Each raises StoreUnavailable when the database is away or slow.

    `policy` returns None, and the others raise NotFound, where the tenant has no such policy.
    """

    async def policy(self, tenant: str, policy_id: str) -> PolicyRow | None: ...

    async def find_exact(self, query: ExactQuery) -> Found:
        """The entry of this exact key, and the alias if there is one: at most two candidates."""

    async def find_nearest(self, query: NearestQuery) -> Found:
        """The `top_k` live entries of the place, partition, space and dimension, nearest first.

        At most the first of them comes with its answer; the others' is UNREAD.
        """

    async def answer(self, place: Place, entry_id: UUID) -> Answer | None:
        """What a candidate of `find_nearest` holds; None when it does not live any more."""

    async def put(self, entry: NewEntry) -> Stored:
        """Keep an answer; an equal one is replaced in both tiers, with its aliases."""

    async def add_aliases(self, aliases: Sequence[Alias]) -> None:
        """Of one tenant, no key twice; those of an entry or a `revision` that went are dropped."""


class AdminStore(Protocol):
    """The operator's verbs. `save_policy` returns whether the policy is new."""

    async def policies(self, tenant: str) -> list[PolicyRow]: ...

    async def save_policy(
        self, tenant: str, policy_id: str, policy: Policy
    ) -> tuple[PolicyRow, bool]: ...

    async def create_policy_once(self, tenant: str, policy_id: str, policy: Policy) -> bool:
        """Create it unless there is, or ever was, one of that id: a deleted one stays deleted."""

    async def delete_policy(self, tenant: str, policy_id: str) -> bool: ...

    async def purge(self, selection: Selection, *, dry_run: bool) -> tuple[int, int]:
        """(matched, purged). Raises NotFound for a policy the tenant does not have."""

    async def entry(self, tenant: str, entry_id: UUID) -> EntryRow | None:
        """One that was not purged, expired or not."""

    async def entries(self, listing: Listing) -> list[EntryRow]:
        """Those that were not purged, newest first; at most `listing.limit`."""

    async def delete_entry(self, tenant: str, entry_id: UUID) -> bool:
        """Purge one entry; False for exactly those which `entry` does not find."""

    async def counts(self, tenant: str) -> list[PolicyCount]: ...

    async def remove_expired(self, limit: int) -> int:
        """Remove up to `limit` rows that can never answer again; returns how many went."""

    async def limited(self) -> list[Room]:
        """The room of every policy that has a limit."""

    async def tenants(self) -> list[str]: ...

    async def remove_overflow(self, room: Room) -> int:
        """Remove what is worth least of what does not fit, a good deal at once; how many went.

        Only what lives takes up room. Returns 0 when nothing is left to remove.
        """

    async def ping(self) -> None:
        """Raises StoreUnavailable unless the database answers and has this release's schema."""
