"""`cachesvc stats` and `cachesvc purge`: what is stored, and removing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cachesvc.commands.options import client_flags, json_flag
from cachesvc.commands.show import print_json, print_table
from cachesvc.errors import ConfigError
from cachesvc.wire import PurgeRequest

if TYPE_CHECKING:
    from cachesvc.client import CacheClient


@click.command(epilog="Example:  cachesvc stats --json")
@client_flags
@json_flag
def stats(client: CacheClient, *, as_json: bool) -> None:
    """Show what each policy holds, and its hits and misses since the service started."""
    reply = client.stats()
    if as_json:
        print_json(reply)
        return
    columns = ("policy", "entries", "aliases", "bytes", "generation", "hits", "misses", "puts")
    rows = (
        (p.policy_id, p.entries, p.aliases, p.body_bytes, p.generation, p.hits, p.misses, p.puts)
        for p in reply.policies
    )
    print_table(columns, rows)


@click.command(epilog="Example:  cachesvc purge --policy default --dry-run")
@click.option("--policy", "policy_id", help="Entries of this policy.")
@click.option("--scope", help="Entries of this scope (`cachesvc policy scope` prints it).")
@click.option("--entry", "entry_id", help="This entry.")
@click.option("--model", help="Answers of this model.")
@click.option("--tag", "tags", multiple=True, help="Entries with this tag; several: all of them.")
@click.option("--older-than", "older_than_seconds", type=float, help="Seconds since the put.")
@click.option("--prompt", "prompt_text", help="Entries of exactly this prompt.")
@click.option("--dry-run", is_flag=True, help="Count, remove nothing.")
@client_flags
@json_flag
def purge(
    client: CacheClient,
    *,
    policy_id: str | None,
    scope: str | None,
    entry_id: str | None,
    model: str | None,
    tags: tuple[str, ...],
    older_than_seconds: float | None,
    prompt_text: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove entries; several selectors are and-ed, at least one is required.

    A purge also keeps out answers that were asked for before it and arrive after it.
    """
    request = PurgeRequest(
        policy_id=policy_id,
        scope=scope,
        tags=list(tags) or None,
        model=model,
        older_than_seconds=older_than_seconds,
        prompt_text=prompt_text,
        entry_id=entry_id,
        dry_run=dry_run,
    )
    if request == PurgeRequest(dry_run=dry_run):
        raise ConfigError("purge: give --policy, --scope, --entry or another selector")
    reply = client.purge(request)
    if as_json:
        print_json(reply)
    elif dry_run:
        click.echo(f"{reply.matched:,} entries match; nothing was removed")
    else:
        click.echo(f"{reply.purged:,} of {reply.matched:,} matching entries removed")
