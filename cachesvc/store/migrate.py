"""Migrations: run them here, or in a process of their own.

`upgrade`, `downgrade` and `status` import Alembic and SQLAlchemy (0.3 s, 30 MB), which a serving
process must never do: it calls `migrate_in_subprocess`, or leaves it to `cachesvc migrate`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesvc.core.vectors import MAX_DIMENSIONS
from cachesvc.errors import CacheError, Invalid, StartError
from cachesvc.store import schema
from cachesvc.store.faults import foreign_errors_as_ours, one_line
from cachesvc.store.reindex import lock_indexes
from cachesvc.store.sql import statement, statement_for

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_PGVECTOR = "the server has no pgvector: install pgvector 0.8 or newer beside it"


@dataclass(frozen=True, slots=True)
class Status:
    """Where a database stands. `indexed_dimensions` have an HNSW index; others are scanned.

    `pgvector` is its version, None where it is not installed in this database.
    """

    current: str | None
    expected: str
    indexed_dimensions: tuple[int, ...]
    pgvector: str | None = None

    @property
    def complaint(self) -> str | None:
        return schema.complaint(self.current)


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema up to `revision`. Needs a thread without a running event loop.

    Raises StoreUnavailable when the database is away, StartError when it cannot be migrated.
    """
    _alembic(url, lambda command, config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to `revision`; `base` removes it with all data. Raises as `upgrade`."""
    _alembic(url, lambda command, config: command.downgrade(config, revision))


def status(url: str) -> Status:
    """Raises StoreUnavailable when the database is away."""
    return asyncio.run(_status(url))


def migrate_in_subprocess(url: str, *, timeout_seconds: float = 120.0) -> None:
    """`upgrade` in a process of its own. Raises StartError with that process's one line."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cachesvc.store.migrate"],
            input=url.encode(),  # not an argument: process lists show those
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise StartError(f"the migration did not end within {timeout_seconds:.0f} s") from exc
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StartError(lines[-1] if lines else f"the migration ended with {done.returncode}")


async def add_index(url: str, dimensions: int) -> bool:
    """Index vectors of `dimensions` while the service keeps running; False where it was already.

    Raises Invalid for dimensions that cannot be indexed, StartError while another one is built,
    StoreUnavailable when the database is away.
    """
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise Invalid(f"dimensions: is {dimensions:,}; must be 1 to {MAX_DIMENSIONS:,}")
    with foreign_errors_as_ours():
        connection = await asyncpg.connect(url)
        try:
            return await _add_index(connection, dimensions)
        finally:
            await connection.close()


async def _add_index(connection: Any, dimensions: int) -> bool:
    await lock_indexes(connection)
    valid = await connection.fetchval(statement_for("index_valid", dimensions))
    if valid:
        return False
    if valid is False:
        await connection.execute(statement_for("drop_index", dimensions))
    await connection.execute(statement_for("create_index", dimensions))
    return True


def _alembic(url: str, run: Callable[[Any, Any], None]) -> None:
    # Imported here: a process that only asks for a subprocess must not pay for them.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    config = Config()
    config.set_main_option("script_location", str(schema.migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    try:
        run(command, config)
    except CommandError as exc:
        raise StartError(one_line(exc)) from exc
    except (SQLAlchemyError, asyncpg.PostgresError, OSError) as exc:
        raise _explained(exc) from exc


def _explained(exc: Exception) -> CacheError:
    cause = getattr(exc, "orig", None)
    cause = getattr(cause, "__cause__", None) or cause or exc
    if isinstance(cause, (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFileError)):
        return StartError(_NO_PGVECTOR)
    return StartError(f"the migration failed: {one_line(cause)}")


async def _status(url: str) -> Status:
    with foreign_errors_as_ours():
        # No named statements: there may be a pooler in between.
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            migrated = await connection.fetchval(statement("revision_table"))
            current = await connection.fetchval(statement("revision")) if migrated else None
            rows = await connection.fetch(statement("indexed_dimensions"))
            pgvector = await connection.fetchval(statement("pgvector_version"))
        finally:
            await connection.close()
    indexed = tuple(row["dimensions"] for row in rows)
    return Status(current, schema.expected_revision(), indexed, pgvector)


if __name__ == "__main__":
    try:
        upgrade(sys.stdin.read())
    except CacheError as error:
        sys.exit(error.message)
