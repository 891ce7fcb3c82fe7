"""Where a database stands is told in one look, its pgvector included."""

from __future__ import annotations

from cachesvc.store import schema
from cachesvc.store.migrate import status


def test_the_version_of_pgvector_is_told(database_url: str) -> None:
    found = status(database_url)
    assert found.current == schema.expected_revision()
    assert found.pgvector is not None
    assert tuple(map(int, found.pgvector.split(".")[:2])) >= (0, 8)


def test_a_database_without_pgvector_is_told_as_such(empty_database_url: str) -> None:
    assert status(empty_database_url).pgvector is None
