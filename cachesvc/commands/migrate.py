"""`cachesvc migrate`: the database's schema."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from cachesvc.commands.database import opened_database
from cachesvc.commands.options import json_flag, settings_flags
from cachesvc.commands.show import print_json, print_table
from cachesvc.store import migrate as migrations
from cachesvc.store import reindex as rebuilding

if TYPE_CHECKING:
    from cachesvc.settings import Settings

_FLAGS = ("--data-dir", "--database-url")


@click.group(epilog="Example:  cachesvc migrate up --database-url postgresql://owner@db/cachesvc")
def migrate() -> None:
    """Bring the schema up, take it down, or say where it stands.

    Works on the database URL, or on the embedded server of the data directory.
    """


@migrate.command(epilog="Example:  cachesvc migrate up")
@click.argument("revision", default="head")
@settings_flags(*_FLAGS)
def up(settings: Settings, *, revision: str) -> None:
    """Migrate up to REVISION; the newest by default. Several at once wait for each other."""
    with opened_database(settings, create=True) as url:
        migrations.upgrade(url, revision)
        _say_where(url)


@migrate.command(epilog="Example:  cachesvc migrate down base --yes")
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
@settings_flags(*_FLAGS)
def down(settings: Settings, *, revision: str, yes: bool) -> None:
    """Migrate down to REVISION; `base` removes the schema with everything in it."""
    if not yes:
        click.confirm("This removes tables with what they hold. Go on?", abort=True)
    with opened_database(settings) as url:
        migrations.downgrade(url, revision)
        _say_where(url)


@migrate.command(epilog="Example:  cachesvc migrate status --json")
@settings_flags(*_FLAGS)
@json_flag
def status(settings: Settings, *, as_json: bool) -> None:
    """Say at which revision the database is, and which dimensions are indexed."""
    with opened_database(settings) as url:
        found = migrations.status(url)
    if as_json:
        print_json(found)
        return
    rows = [
        ("revision", found.current or "none"),
        ("this release needs", found.expected),
        ("indexed dimensions", ", ".join(map(str, found.indexed_dimensions)) or "none"),
        ("complaint", found.complaint or "none"),
    ]
    print_table(("what", "value"), rows)


@migrate.command(epilog="Example:  cachesvc migrate index --dimensions 1024")
@click.option("--dimensions", required=True, type=int, help="Of the embedding model: 1 to 3984.")
@settings_flags(*_FLAGS)
def index(settings: Settings, *, dimensions: int) -> None:
    """Index one more number of dimensions, while the service keeps running.

    Vectors of other dimensions are found, too, but by an exact scan of their partition.
    """
    with opened_database(settings) as url:
        click.echo(f"building the index over {dimensions} dimensions", err=True)
        made = asyncio.run(migrations.add_index(url, dimensions))
    click.echo("done" if made else "it was there already")


@migrate.command(epilog="Example:  cachesvc migrate reindex --index leaves_by_vector_384")
@click.option("--index", metavar="NAME", help="One index; all of ours by default.")
@settings_flags(*_FLAGS)
def reindex(settings: Settings, *, index: str | None) -> None:
    """Build indexes anew, while the service keeps running.

    Smaller and faster than an index that has seen many rows come and go. Needs as much free disk as
    the largest index takes; an attempt that is broken off changes nothing, and the next one
    clears up after it.
    """
    with opened_database(settings) as url:
        rebuilt = asyncio.run(rebuilding.reindex(url, index, told=_say_progress))
    rows = [(one.name, f"{one.before:,}", f"{one.after:,}") for one in rebuilt]
    print_table(("index", "bytes before", "bytes after"), rows)


@migrate.command(epilog="Example:  cachesvc migrate vacuum")
@settings_flags(*_FLAGS)
def vacuum(settings: Settings) -> None:
    """Free what dead rows take and count what there is, while the service keeps running.

    The server does this by itself, unless its autovacuum is off or cannot keep up.
    A vector index that lost many rows is gone through several times faster after
    `cachesvc migrate reindex`.
    """
    with opened_database(settings) as url:
        asyncio.run(rebuilding.vacuum(url))
    click.echo("done")


def _say_progress(progress: rebuilding.Progress) -> None:
    share = f" {100 * progress.done // progress.total}%" if progress.total else ""
    click.echo(f"{progress.name}: {progress.phase}{share}", err=True)


def _say_where(url: str) -> None:
    click.echo(f"the schema is at {migrations.status(url).current or 'none'}")
