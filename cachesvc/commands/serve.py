"""`cachesvc serve` and `cachesvc proxy`: one part each, for those who run them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cachesvc.commands.options import settings_flags
from cachesvc.commands.up import Parts, run_parts
from cachesvc.part import Work, run_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesvc.settings import Settings


@click.command(epilog="Example:  cachesvc serve --database-url postgresql://cache@db/cachesvc")
@settings_flags("--data-dir", "--service-listen", "--database-url", "--insecure")
@click.option("--migrate/--no-migrate", default=True, help="Bring the schema up to date first.")
def serve(settings: Settings, *, migrate: bool) -> None:
    """Run the service: /cache/lookup, /cache/put and administration.

    Without a database URL it brings its own Postgres, kept in the data directory and watched.
    """
    if not settings.service.database_url:
        run_parts(settings, Parts(proxy=False, demo=False, default_policy=False))
        return
    if migrate:
        from cachesvc.store.migrate import migrate_in_subprocess

        migrate_in_subprocess(settings.service.database_url)
    run_part("service", Work(settings), _announce("service"))


@click.command(epilog="Example:  cachesvc proxy --upstream https://api.openai.com")
@settings_flags("--data-dir", "--proxy-listen", "--upstream", "--service-url")
def proxy(settings: Settings) -> None:
    """Run the proxy in front of an upstream. Any error of the cache costs a caller only a miss."""
    run_part("proxy", Work(settings), _announce("proxy"))


def _announce(name: str) -> Callable[[list[str]], None]:
    def say(urls: list[str]) -> None:
        click.echo(f"cachesvc {name}: {'  '.join(urls)}", err=True)

    return say
