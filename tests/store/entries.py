"""Entries to put in tests, vectors whose cosine is known, and time that passes at once."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.store.base import ExactQuery, NearestQuery, NewEntry, Place
from tests.postgres import POLICY, TENANT

if TYPE_CHECKING:
    from cachesvc.core.vectors import Vector
    from tests.postgres import Stores

PLACE = Place(TENANT, POLICY, "shared")
ANSWER = Answer(b'{"choices": [ "yes" ]}', "application/json", 7, 11)
DIMENSIONS = 384


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def unit(seed: int, dimensions: int = DIMENSIONS) -> Vector:
    """A random direction, the same for the same seed; two of them are nearly orthogonal."""
    vector = np.random.default_rng(seed).standard_normal(dimensions)
    return vector / float(np.linalg.norm(vector))


def near(vector: Vector, cosine: float, seed: int = 0) -> Vector:
    """A unit vector at exactly this cosine."""
    other = unit(1_000_000 + seed, vector.size)
    other = other - float(np.dot(other, vector)) * vector
    other = other / float(np.linalg.norm(other))
    return cosine * vector + float(np.sqrt(1 - cosine**2)) * other


def new(name: str | None = None, **fields: Any) -> NewEntry:
    """An entry under the exact key of `name`; a vector makes it semantic, too."""
    fields.setdefault("place", PLACE)
    fields.setdefault("answer", ANSWER)
    return NewEntry(exact_key=None if name is None else key(name), **fields)


def exact(name: str, place: Place = PLACE, **fields: Any) -> ExactQuery:
    return ExactQuery(place, key(name), **fields)


def nearest(vector: Vector, place: Place = PLACE, **fields: Any) -> NearestQuery:
    fields.setdefault("partition", b"")
    fields.setdefault("space", "")
    return NearestQuery(place, vector=vector, **fields)


async def save(stores: Stores, ttl: int, semantic: int | None = None) -> None:
    """Write the policy with these TTLs."""
    policy = Policy(sharing="shared", ttl_seconds=ttl, semantic_ttl_seconds=semantic)
    await stores.admin.save_policy(TENANT, POLICY, policy)


async def age(stores: Stores, seconds: float) -> None:
    """Let time pass for everything stored: all of it becomes older by `seconds`."""
    for table in ("entries", "aliases"):
        moments = ["created_at"]
        moments += (
            ["exact_expires_at", "semantic_expires_at"] if table == "entries" else ["expires_at"]
        )
        changes = ", ".join(f"{name} = {name} - $1::interval" for name in moments)
        await stores.database.row(f"UPDATE {table} SET {changes}", timedelta(seconds=seconds))
    await stores.database.row(
        "UPDATE policies SET exact_floor = exact_floor - $1::interval, "
        "semantic_floor = semantic_floor - $1::interval, "
        "alias_floor = alias_floor - $1::interval",
        timedelta(seconds=seconds),
    )
