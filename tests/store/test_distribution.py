"""The schema and every statement carry the tenant, so that tables can be distributed by it.

On Citus a statement whose every table is held to one tenant goes to the one server which has that
tenant. Anything else is an exception, listed here with its reason.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from cachesvc.store import sql

SCHEMA = (Path(__file__).parents[2] / "migrations" / "schema.sql").read_text("utf-8")
TABLES = set(re.findall(r"CREATE TABLE public\.(\w+)", SCHEMA)) - {"alembic_version"}
SWEEP = "the sweep's list of where to go: read from all tenants, now and then"
EXCEPTIONS = {
    "every_policy": SWEEP,
    "every_tenant": SWEEP,
    "limited_policies": SWEEP,
    "policies_with_dead": SWEEP,
    "split_tenants": SWEEP,
    "dimensions_in_use": "the doctor's sample of the whole table",
    "create_index": "an operator's statement on the table itself",
    "vacuum": "an operator's statement on the table itself",
}
_TABLE = re.compile(
    rf"(?:\b(FROM|JOIN|USING|UPDATE|INTO)|,)\s+({'|'.join(TABLES)})\b(?:\s+(?:AS\s+)?(\w+))?"
)
_EQUAL = re.compile(r"\b(?:(\w+)\.)?tenant\s*=\s*(?:(\$1)\b|(\w+)\.tenant\b)")
_WORDS = {"where", "set", "join", "left", "cross", "on", "order", "using", "tablesample", "for"}


class Query(NamedTuple):
    """One SELECT or change, without those within it; `outer` are the ones around it."""

    text: str
    outer: tuple[str, ...]


def queries(text: str, outer: tuple[str, ...] = ()) -> list[Query]:
    """Every query of a statement; parts of a UNION are queries of their own."""
    text = re.sub(r"--[^\n]*", "", text)
    own, inner, depth, start = [], [], 0, 0
    for place, letter in enumerate(text):
        if letter == "(":
            depth += 1
            if depth == 1:
                start = place + 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                inside = text[start:place]
                if re.search(r"\b(SELECT|DELETE|UPDATE|INSERT)\b", inside):
                    inner.append(inside)
                    own.append(" () ")
                else:
                    own.append(f"({inside})")
        elif depth == 0:
            own.append(letter)
    whole = "".join(own)
    found = [Query(part, outer) for part in re.split(r"\bUNION(?: ALL)?\b", whole)]
    for inside in inner:
        found += queries(inside, (*outer, whole))
    return found


def loose(query: Query) -> list[str]:
    """The tables in a query that nothing holds to one tenant."""
    named = {}
    faults = []
    for word, table, alias in _TABLE.findall(query.text):
        name = table if not alias or alias.lower() in _WORDS else alias
        if word == "INTO":
            if not _inserts_tenant(query.text):
                faults.append(f"INSERT INTO {table}")
        else:
            named[name] = table
    held = {name for name in named if _held(name, query.text, len(named))}
    around = {
        match[0] for text in query.outer for match in _EQUAL.findall(text) if match[1] and match[0]
    }
    for _ in named:
        for left, _, right in _EQUAL.findall(query.text):
            if right in held | around:
                held.add(left)
            if left in held | around:
                held.add(right)
    return faults + [named[name] for name in named if name not in held]


def _held(name: str, text: str, tables: int) -> bool:
    return any(
        one and (left == name or (not left and tables == 1))
        for left, one, _ in _EQUAL.findall(text)
    )


def _inserts_tenant(text: str) -> bool:
    """The tenant is the first column, $1 its value, and of the key that conflicts."""
    flat = " ".join(text.split())
    first = re.search(
        r"INSERT INTO \w+(?: AS \w+)? \( ?tenant,.*?(?:SELECT|VALUES \() ?\$1\b", flat
    )
    conflict = re.search(r"ON CONFLICT \(([^)]*)", flat)
    return bool(first) and (conflict is None or conflict[1].startswith("tenant,"))


def test_every_key_begins_with_the_tenant() -> None:
    keys = re.findall(r"ADD CONSTRAINT (\w+) PRIMARY KEY \((\w+)", SCHEMA)
    keys += re.findall(r"CREATE UNIQUE INDEX (\w+) ON \S+ USING btree \((\w+)", SCHEMA)
    ours = [(name, first) for name, first in keys if not name.startswith("alembic")]
    assert len(ours) >= len(TABLES) + 2
    assert [name for name, first in ours if first != "tenant"] == []
    assert "FOREIGN KEY" not in SCHEMA


@pytest.mark.parametrize("name", [name for name in sql.names() if name not in EXCEPTIONS])
def test_every_statement_holds_every_table_to_one_tenant(name: str) -> None:
    text = sql.statement(name)
    assert [fault for query in queries(text) for fault in loose(query)] == []


@pytest.mark.parametrize("name", sql.plurals())
def test_so_does_every_statement_for_many(name: str) -> None:
    text = sql.plural(name).many
    assert "unnest(" in text
    assert [fault for query in queries(text) for fault in loose(query)] == []


def test_each_exception_is_one_and_changes_nothing() -> None:
    for name in EXCEPTIONS:
        text = sql.statement(name)
        assert not re.search(r"\b(INSERT|UPDATE|DELETE)\b", text), name
        tables = any(re.search(rf"\b{table}\b", text) for table in TABLES)
        assert tables, name


@pytest.mark.parametrize(
    "text",
    [
        "SELECT id FROM entries e WHERE e.id = $2",
        "SELECT 1 FROM policies p JOIN entries e ON e.policy_id = p.id WHERE p.tenant = $1",
        "DELETE FROM aliases a USING locked l WHERE a.entry_id = l.id",
        "SELECT 1 FROM policies p WHERE p.tenant = $1 AND EXISTS (SELECT FROM entries e)",
        "SELECT 1 FROM entries e WHERE e.tenant = $1 UNION ALL SELECT 1 FROM entries e",
        "INSERT INTO entries (id, tenant) VALUES ($2, $1)",
        "INSERT INTO policies (tenant, id) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING",
        "UPDATE entries SET hits = 1 WHERE id = $2",
    ],
)
def test_a_statement_that_leaves_a_table_loose_is_found(text: str) -> None:
    assert [fault for query in queries(text) for fault in loose(query)]
