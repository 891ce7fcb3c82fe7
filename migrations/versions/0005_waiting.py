"""Only what a search walks is in the HNSW index: entries of small cells are scanned, and wait.

An entry without a code is not in that index, for pgvector leaves nulls out. Those of small cells
that are there already stay until they expire.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from cachesvc.core.cells import CODE_DIMENSIONS, code_of

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ALWAYS = f"""
ALTER TABLE entries DROP CONSTRAINT entries_cell, ADD CONSTRAINT entries_cell CHECK (
    (cell IS NULL) = (dimensions IS NULL) AND (code IS NULL) = (dimensions IS NULL)
    AND (code IS NULL OR vector_dims(code) = {CODE_DIMENSIONS})
)
"""

_ONCE_LARGE = f"""
ALTER TABLE entries DROP CONSTRAINT entries_cell, ADD CONSTRAINT entries_cell CHECK (
    (cell IS NULL) = (dimensions IS NULL) AND (code IS NULL OR dimensions IS NOT NULL)
    AND (code IS NULL OR vector_dims(code) = {CODE_DIMENSIONS})
)
"""

_WAITING = """
CREATE INDEX entries_waiting ON entries (tenant, cell, semantic_expires_at)
WHERE cell IS NOT NULL AND code IS NULL
"""

# Made last, and made last again: on a table too small for statistics the planner takes those.
_UNIQUE = (
    """
    CREATE UNIQUE INDEX entries_by_prompt ON entries
        (tenant, policy_id, scope, space, dimensions, partition, prompt_hash)
    WHERE exact_key IS NULL
    """,
    """
    CREATE UNIQUE INDEX entries_by_exact_key ON entries (tenant, policy_id, scope, exact_key)
    WHERE exact_key IS NOT NULL
    """,
)


def upgrade() -> None:
    op.execute(_ONCE_LARGE)
    op.execute(_WAITING)
    _make_unique_ones_last()


def downgrade() -> None:
    op.execute("DROP INDEX entries_waiting")
    _fill()
    op.execute(_ALWAYS)
    _make_unique_ones_last()


def _make_unique_ones_last() -> None:
    for index in ("entries_by_prompt", "entries_by_exact_key"):
        op.execute(f"DROP INDEX {index}")
    for statement in _UNIQUE:
        op.execute(statement)


def _fill() -> None:
    connection = op.get_bind()
    waiting = "FROM entries WHERE cell IS NOT NULL AND code IS NULL"
    for (cell,) in connection.execute(text(f"SELECT DISTINCT cell {waiting}")).all():
        code = "[" + ",".join(map(repr, code_of(bytes(cell)).tolist())) + "]"
        connection.execute(
            text(
                "UPDATE entries SET code = CAST(CAST(:code AS text) AS halfvec) "
                "WHERE cell = :cell AND code IS NULL"
            ),
            {"cell": cell, "code": code},
        )
