"""Loads queries.sql: every statement by its name, with `{dimensions}` as the only placeholder."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from cachesvc.core.cells import CODE_DIMENSIONS

_FILE = Path(__file__).with_name("queries.sql")
_HEADING = re.compile(r"^-- (\w+) -- .+$", re.MULTILINE)


@cache
def _statements() -> dict[str, str]:
    parts = _HEADING.split(_FILE.read_text("utf-8"))[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def statement(name: str) -> str:
    return _statements()[name]


@cache
def statement_for(name: str, dimensions: int) -> str:
    """A statement whose types and index depend on the number of dimensions."""
    text = _statements()[name].replace("{dimensions}", str(int(dimensions)))
    return text.replace("{coded}", str(int(dimensions) + CODE_DIMENSIONS))


def names() -> list[str]:
    return list(_statements())
