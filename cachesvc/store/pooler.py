"""Through PgBouncer in transaction mode, where each transaction may get another server session.

A session keeps nothing there: neither prepared statements nor settings. So every statement runs in
a transaction of its own, whose BEGIN carries the settings, and is parsed and executed unnamed.
That makes four round trips to the pooler of one to the database, which is what a pooler costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesvc.errors import StoreUnavailable
from cachesvc.store.faults import FOREIGN, one_line
from cachesvc.store.hosts import each_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger("cachesvc.store")

_BAD_URL = "service.database_url: is not the URL of a PostgreSQL database"
# What PgBouncer keeps per client by itself.
_KEPT = "application_name"
# Dead, deaf, starting up or stopping, or not what target_session_attrs asks for.
NEXT_HOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TargetServerAttributeNotMatched,
)


class Connector:
    """Connects with our settings, or, through a pooler that refuses them, without.

    `pooled` is True from the start where the pooler is known, else from its first refusal on:
    PgBouncer answers a start-up parameter that it does not track with 08P01.
    """

    def __init__(self, settings: dict[str, str], *, pooled: bool = False) -> None:
        self.pooled = pooled
        self._settings = settings
        self._last: dict[str, int] = {}  # by URL, which of its hosts let us in
        self._opening = "; ".join(["BEGIN", *_local(settings)])

    async def __call__(self, url: str, **options: Any) -> Any:
        """The first host of the URL that lets us in, from the last one that did.

        `timeout` is shared out among them, in seconds.
        """
        urls = each_host(url)
        options["timeout"] /= len(urls)
        first = self._last.get(url, 0)
        for number in range(first, first + len(urls)):
            place = number % len(urls)
            try:
                connection = await self._connect(urls[place], **options)
            except NEXT_HOST as exc:
                fault = exc
            except asyncio.CancelledError:
                # Whoever waited has no more time: the next one begins with another host.
                self._last[url] = (place + 1) % len(urls)
                raise
            else:
                self._last[url] = place
                return connection
        if isinstance(fault, asyncpg.TargetServerAttributeNotMatched):
            raise StoreUnavailable("the database has no host as target_session_attrs wants it")
        raise fault

    async def _connect(self, url: str, **options: Any) -> Any:
        pooled = self.pooled
        try:
            if not pooled:
                return await asyncpg.connect(url, server_settings=self._settings, **options)
            name = {_KEPT: self._settings[_KEPT]} if _KEPT in self._settings else {}
            return await asyncpg.connect(
                url, server_settings=name, **{**options, "statement_cache_size": 0}
            )
        except ValueError as exc:
            raise StoreUnavailable(_BAD_URL) from exc
        except asyncpg.ProtocolViolationError as exc:
            if pooled or "startup parameter" not in str(exc):
                raise
            self.pooled = True
            log.info("the database is behind a pooler of transactions (%s)", one_line(exc))
        return await self._connect(url, **options)

    @contextlib.asynccontextmanager
    async def transaction(self, connection: Any) -> AsyncIterator[None]:
        """A transaction in which our settings hold, where the session cannot keep them."""
        try:
            await connection.execute(self._opening)
            yield
            await connection.execute("COMMIT")
        except asyncpg.PostgresError:
            with contextlib.suppress(*FOREIGN):
                await connection.execute("ROLLBACK")
            raise
        except BaseException:
            # Cut off in the middle: the pooler ends the transaction with the connection.
            connection.terminate()
            raise


def _local(settings: dict[str, str]) -> list[str]:
    return [f"SET LOCAL {name} = '{value}'" for name, value in settings.items() if name != _KEPT]
