"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_PLAIN_WIDTH = 200


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; numbers are right-aligned. Without a terminal it has no colour and is not cut."""
    kept = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(kept) and all(isinstance(row[index], (int, float)) for row in kept)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in kept:
        table.add_row(*[f"{v:,}" if isinstance(v, (int, float)) else str(v) for v in row])
    # Without a terminal nothing may be folded to a width that nobody has.
    console = Console()
    Console(width=None if console.is_terminal else _PLAIN_WIDTH).print(table)
