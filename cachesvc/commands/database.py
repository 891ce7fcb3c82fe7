"""A database to work on: the given one, a running one, or our own for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cachesvc.errors import StartError
from cachesvc.store.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.settings import Settings


@contextmanager
def opened_database(settings: Settings, *, create: bool = False) -> Iterator[str]:
    """The URL of `service.database_url`, else of the embedded server of `data_dir`.

    The embedded one is started for the time being, unless another process of ours runs it; it is
    made where there is none only to `create`. Raises StartError.
    """
    url = settings.service.database_url or EmbeddedPostgres.running_url(settings.data_path)
    if url:
        yield url
        return
    postgres = EmbeddedPostgres(settings.data_path)
    if not (create or postgres.exists):
        raise StartError(
            f"there is no database in {settings.data_path}; name another --data-dir, or a "
            "--database-url"
        )
    postgres.start()
    try:
        yield postgres.url
    finally:
        postgres.stop()
