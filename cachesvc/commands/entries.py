"""`cachesvc stats`, `entries` and `purge`: what is stored, and removing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cachesvc.commands.options import client_flags, json_flag
from cachesvc.commands.show import print_json, print_table
from cachesvc.errors import ConfigError
from cachesvc.wire_admin import MAX_PAGE, STATES, TIERS, EntryFilter, EntryList, PurgeRequest

if TYPE_CHECKING:
    from cachesvc.client import CacheClient
    from cachesvc.wire_admin import EntrySummary

_PROMPT_SHOWN = 60  # characters


@click.command(epilog="Example:  cachesvc stats --json")
@client_flags
@json_flag
def stats(client: CacheClient, *, as_json: bool) -> None:
    """Show what each policy holds, and its hits and misses since the service started."""
    reply = client.stats()
    if as_json:
        print_json(reply)
        return
    columns = (
        *("policy", "entries", "aliases", "bytes", "generation", "hits", "misses", "puts"),
        *("shadow hits", "tokens saved", "seconds saved"),
    )
    rows = (
        (
            *(p.policy_id, p.entries, p.aliases, p.body_bytes, p.generation),
            *(p.hits, p.misses, p.puts, p.shadow_hits),
            p.prompt_tokens_saved + p.completion_tokens_saved,
            round(p.upstream_seconds_saved, 1),
        )
        for p in reply.policies
    )
    print_table(columns, rows)


@click.command(epilog="Example:  cachesvc entries --policy default --prompt refund --limit 20")
@click.argument("entry_id", required=False)
@click.option("--policy", "policy_id", help="Entries of this policy.")
@click.option("--scope", help="Entries of this scope (`cachesvc policy scope` prints it).")
@click.option("--model", help="Answers of this model.")
@click.option("--tag", "tags", multiple=True, help="Entries with this tag; several: all of them.")
@click.option("--tier", type=click.Choice(TIERS), help="Entries that are on this tier.")
@click.option("--prompt", help="Entries whose prompt has this in it, in any case.")
@click.option("--state", type=click.Choice(STATES), help="Entries in this state; default: all.")
@click.option("--older-than", "older_than_seconds", type=float, help="Seconds since the put.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="How many, at most."
)
@client_flags
@json_flag
def entries(
    client: CacheClient,
    *,
    entry_id: str | None,
    tags: tuple[str, ...],
    limit: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """List what is stored, newest first; or show the entry ENTRY_ID whole, with its answer."""
    if entry_id is not None:
        if tags or any(value is not None for value in filters.values()):
            raise ConfigError("entries: give ENTRY_ID, or filters, not both")
        print_json(client.entry(entry_id))
        return
    found = _pages(client, EntryFilter(tag=list(tags), **filters), limit)
    if as_json:
        print_json(found)
        return
    columns = ("entry", "policy", "scope", "state", "model", "created", "bytes", "prompt")
    print_table(columns, map(_row, found.entries))
    if found.next_cursor is not None:
        click.echo("there are more: give a higher --limit", err=True)


def _pages(client: CacheClient, query: EntryFilter, limit: int) -> EntryList:
    """So many entries as one list; its cursor leads on from there."""
    found: list[EntrySummary] = []
    while True:
        query.limit = min(MAX_PAGE, limit - len(found))
        page = client.entries(query)
        found += page.entries
        query.cursor = page.next_cursor
        if page.next_cursor is None or len(found) >= limit:
            return EntryList(entries=found, next_cursor=page.next_cursor)


def _row(entry: EntrySummary) -> tuple[object, ...]:
    prompt = " ".join(entry.prompt_text.split())
    shown = prompt if len(prompt) <= _PROMPT_SHOWN else f"{prompt[: _PROMPT_SHOWN - 1]}…"
    made = entry.created_at.partition(".")[0].rstrip("Z")
    return (
        *(entry.entry_id, entry.policy_id, entry.scope, entry.state),
        *(entry.model, f"{made}Z", entry.body_bytes, shown),
    )


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
