"""What the doctor says of the database: its version, its schema, and in what condition it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.commands.finding import FAIL, OK, WARN, Finding
from cachesvc.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.settings import Settings
    from cachesvc.store.condition import Condition, Table
    from cachesvc.store.migrate import Status

_PGVECTOR = (0, 8)
_FEW_ROWS = 1000  # below it nothing here is worth a warning
_DEAD_SHARE = 0.4  # of all rows: autovacuum comes at a quarter of them
_CHANGED_SHARE = 0.25
_MIB = 2**20
_VACUUM = "cachesvc migrate vacuum"


def examine_database(settings: Settings, embedded: set[int]) -> Iterator[Finding]:
    """`embedded` are the dimensions that the tables of [embed] have."""
    from cachesvc.store.condition import condition
    from cachesvc.store.embedded import EmbeddedPostgres
    from cachesvc.store.migrate import status

    url = settings.service.database_url or EmbeddedPostgres.running_url(settings.data_path)
    if not url:
        said = f"no embedded server runs in {settings.data_path}"
        yield Finding("database", WARN, said, "cachesvc up, or another --data-dir")
        return
    try:
        found = status(url)
        kept = condition(url) if found.complaint is None else None
    except (CacheError, OSError) as exc:
        yield Finding("database", FAIL, str(exc), "is it running, and may this user connect?")
        return
    yield Finding("database", OK, "answers")
    complaint = found.complaint
    yield Finding("schema", FAIL if complaint else OK, complaint or str(found.current))
    yield _pgvector(found.pgvector, kept.newer_pgvector if kept else None)
    yield from _indexes(found, embedded | set(kept.dimensions if kept else ()))
    if kept is not None:
        yield from conditions(kept)


def conditions(found: Condition) -> Iterator[Finding]:
    """Broken and bloated indexes, dead rows, old statistics, and whether anybody sees to them."""
    for index in found.indexes:
        if not index.valid:
            advice = "cachesvc migrate reindex"
            if not index.name.endswith(("_ccnew", "_ccold")):
                advice += f" --index {index.name}"
            yield Finding("index", WARN, f"{index.name} is broken and not used", advice)
    large = [one for one in found.bloated() if getattr(one, "valid", True)]
    for one in large:
        taken, needed = one.bytes // _MIB, one.packed_bytes // _MIB
        rebuild = f"cachesvc migrate reindex --index {one.name}"
        advice = rebuild if one in found.indexes else f"{_VACUUM}: new rows take that room"
        counted = f"{one.name} takes {taken:,} MiB where {needed:,} would do"
        yield Finding("bloat", WARN, counted, advice)
    dead = [table for table in found.tables if _too_many(table.dead, table, _DEAD_SHARE)]
    for table in dead:
        counted = f"{table.name}: {table.dead:,} dead rows beside {table.live:,}"
        yield Finding("bloat", WARN, counted, _VACUUM)
    if not large and not dead:
        yield Finding("bloat", OK, f"none to speak of in {found.bytes // _MIB:,} MiB")
    yield from _statistics(found)
    yield from _autovacuum(found)


def _too_many(rows: int, table: Table, share: float) -> bool:
    return rows >= _FEW_ROWS and rows > share * (rows + table.live)


def _statistics(found: Condition) -> Iterator[Finding]:
    cold = [
        f"{table.name}: {table.changed:,} rows changed since"
        + (" the server last counted" if table.analyzed_at is None else f" {table.analyzed_at:%F}")
        for table in found.tables
        if (table.analyzed_at is None and table.live >= _FEW_ROWS)
        or _too_many(table.changed, table, _CHANGED_SHARE)
    ]
    for told in cold:
        yield Finding("statistics", WARN, told, _VACUUM)
    if not cold:
        yield Finding("statistics", OK, "of today's rows")


def _autovacuum(found: Condition) -> Iterator[Finding]:
    if not all(table.vacuumed_by_server for table in found.tables):
        advice = "ALTER SYSTEM SET autovacuum = on; ALTER SYSTEM SET track_counts = on; reload"
        yield Finding("autovacuum", WARN, "is off: dead rows are never removed", advice)
        return
    off = [table.name for table in found.tables if not table.vacuumed_by_table]
    for name in off:
        advice = f"ALTER TABLE {name} RESET (autovacuum_enabled)"
        yield Finding("autovacuum", WARN, f"is off for {name}", advice)
    if not off:
        yield Finding("autovacuum", OK, "on")


def _indexes(found: Status, wanted: set[int]) -> Iterator[Finding]:
    """`wanted` are the dimensions that vectors have, or will have."""
    without = sorted(wanted - set(found.indexed_dimensions))
    for dimensions in without:
        advice = f"cachesvc migrate index --dimensions {dimensions}"
        yield Finding("index", WARN, f"{dimensions} dimensions are scanned exactly", advice)
    if not without:
        indexed = ", ".join(map(str, found.indexed_dimensions))
        yield Finding("index", OK if indexed else FAIL, f"dimensions {indexed or 'none'}")


def _pgvector(version: str | None, newer: str | None) -> Finding:
    if version is None:
        return Finding("pgvector", FAIL, "missing", "install pgvector 0.8 or newer")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _PGVECTOR:
        return Finding(
            "pgvector", FAIL, version, "0.8 or newer is needed: ALTER EXTENSION … UPDATE"
        )
    if newer is not None:
        advice = "ALTER EXTENSION vector UPDATE, as the extension's owner"
        return Finding("pgvector", WARN, f"{version}, and {newer} is installed beside it", advice)
    return Finding("pgvector", OK, version)
