"""What the driver and the network raise, as ours."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import asyncpg

from cachesvc.errors import StoreError, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

# The database is away, overloaded, out of disk, or not (yet) ours to write: it may come back.
_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
_NO_SCHEMA = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedObjectError,
)
# Of prepared statements that another session has, or this one has already.
_POOLED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


def one_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0] or type(exc).__name__


FOREIGN = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


@contextlib.contextmanager
def foreign_errors_as_ours() -> Iterator[None]:
    """Raises StoreUnavailable or StoreRefused for what asyncpg and the network raise."""
    try:
        yield
    except FOREIGN as exc:
        raise as_ours(exc) from exc


def as_ours(exc: BaseException) -> StoreError:
    """One of FOREIGN in our words.

    A refused statement is told by its SQLSTATE alone: the driver's message may hold its values.
    """
    if isinstance(exc, _NO_SCHEMA):
        return StoreUnavailable(
            "the database has not the schema of this release: run cachesvc migrate"
        )
    if isinstance(exc, _POOLED):
        return StoreUnavailable('a pooler mixes up sessions: set service.pooler = "transaction"')
    if isinstance(exc, _AWAY):
        return StoreUnavailable(f"the database is not available: {one_line(exc)}")
    if isinstance(exc, asyncpg.PostgresError):
        return StoreRefused(f"the database refused a statement: SQLSTATE {exc.sqlstate}")
    if isinstance(exc, asyncpg.InterfaceError):
        if isinstance(exc, ValueError):
            return StoreRefused("the database driver refused a value")
        return StoreUnavailable(f"the database is not available: {one_line(exc)}")
    if isinstance(exc, TimeoutError):
        return StoreUnavailable("the database did not answer in time")
    reason = getattr(exc, "strerror", None) or type(exc).__name__
    return StoreUnavailable(f"the database cannot be reached: {reason}")
