"""Loads queries.sql: every statement by its name, with what its braces stand for."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cachesvc.core.cells import CODE_DIMENSIONS

_FILE = Path(__file__).with_name("queries.sql")
# Of leaves with so many values all are compared, 4 ms; of more, the index leads to the nearest.
_RANKED_VALUES = 1_536_000
# So many leaves are scanned. Of prompts that lie around 60 topics in a cell of 100,000 entries, 8
# hold what is at cosine .94 in 999 of 1,000 cases, 12 in all. It takes more of 10^6 entries, where
# 17,000 at a time are equally far from each other.
_PROBES, _MORE_PROBES, _MOST_PROBES, _MANY = 12, 32, 48, 1000
_SPLITTING = 32  # at once, and scanned, too: one for each process that splits
_HEADING = re.compile(r"^-- (\w+) -- .+$", re.MULTILINE)
# `{asked: name type, ...}`: the parameters from $2 on, which may come from one asker or from many.
_ASKED = re.compile(r"\{asked: ([^}]+)\}")


class Plural(NamedTuple):
    """A statement for one asker, and for many at once: `many` takes an array for each parameter
    but the tenant, and says of each row by `asked`, from 1, whose it is."""

    one: str
    many: str


@cache
def _statements() -> dict[str, str]:
    parts = _HEADING.split(_FILE.read_text("utf-8"))[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


@cache
def statement(name: str) -> str:
    return _ASKED.sub(_one, _statements()[name])


@cache
def plural(name: str) -> Plural:
    """A statement that has `{asked: …}`."""
    return Plural(statement(name), _ASKED.sub(_many, _statements()[name]))


def _one(asked: re.Match[str]) -> str:
    columns = [
        f"${number}::{kind} AS {column}" for number, (column, kind) in enumerate(_columns(asked), 2)
    ]
    return f"(SELECT 1 AS asked, {', '.join(columns)}) q"


def _many(asked: re.Match[str]) -> str:
    columns = _columns(asked)
    arrays = [f"${number}::{kind}[]" for number, (_, kind) in enumerate(columns, 2)]
    names = [column for column, _ in columns]
    return f"unnest({', '.join(arrays)}) WITH ORDINALITY q({', '.join(names)}, asked)"


def _columns(asked: re.Match[str]) -> list[tuple[str, str]]:
    """Names and types."""
    return re.findall(r"(\w+) ([^,]+)", asked[1])


@cache
def statement_for(name: str, dimensions: int) -> str:
    """A statement whose types and index depend on the number of dimensions."""
    values = {
        "dimensions": dimensions,
        "coded": dimensions + CODE_DIMENSIONS,
        "ranked": max(1, _RANKED_VALUES // max(384, dimensions)),
        "splitting": _SPLITTING,
        "probes": _PROBES,
        "more_probes": _MORE_PROBES,
        "most_probes": _MOST_PROBES,
        "many": _MANY,
    }
    text = statement(name)
    for placeholder, value in values.items():
        text = text.replace(f"{{{placeholder}}}", str(int(value)))
    return text


def names() -> list[str]:
    return list(_statements())


def plurals() -> list[str]:
    """The names of the statements that have `{asked: …}`."""
    return [name for name, text in _statements().items() if _ASKED.search(text)]
