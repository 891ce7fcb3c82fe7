"""Vectors are indexed with their cell's code, and a cell is found by its name and what lives in it.

Cell and code are computed by the process that puts, and stored: the indexes are made of them. What
an entry weighs is stored, too: the table is written anew once, and its vectors indexed once.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from cachesvc.core.cells import CODE_DIMENSIONS, cell_of, code_of

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = """
ALTER TABLE entries
    ADD COLUMN cell bytea,
    ADD COLUMN code halfvec,
    ADD COLUMN bytes integer NOT NULL GENERATED ALWAYS AS (
        octet_length(body) + octet_length(prompt_text) + coalesce(dimensions, 0) * 2
    ) STORED,
    ALTER COLUMN cell SET STORAGE PLAIN,
    ALTER COLUMN code SET STORAGE PLAIN
"""

_WITHOUT = """
ALTER TABLE entries
    DROP CONSTRAINT entries_cell, DROP COLUMN cell, DROP COLUMN code, DROP COLUMN bytes
"""

_CELLS = """
SELECT DISTINCT tenant, policy_id, scope, space, dimensions, partition
FROM entries WHERE dimensions IS NOT NULL
"""

_FILL = """
UPDATE entries SET cell = :cell, code = CAST(CAST(:code AS text) AS halfvec)
WHERE tenant = :tenant AND policy_id = :policy_id AND scope = :scope AND space = :space
    AND dimensions = :dimensions AND partition = :partition
"""

_CHECK = f"""
ALTER TABLE entries ADD CONSTRAINT entries_cell CHECK (
    (cell IS NULL) = (dimensions IS NULL) AND (code IS NULL) = (dimensions IS NULL)
    AND (code IS NULL OR vector_dims(code) = {CODE_DIMENSIONS})
)
"""

# With the expiry in it, what is expired and waits for removal is passed over in the index.
_BY_CELL = """
CREATE INDEX entries_by_cell ON entries (tenant, cell, semantic_expires_at)
WHERE cell IS NOT NULL
"""

# With the weight in it, what a policy holds is summed without a look at its rows.
_BY_AGE = "CREATE INDEX entries_by_age ON entries (tenant, policy_id, created_at){include}"

_BY_PARTITION = """
CREATE INDEX entries_by_partition ON entries
    (tenant, policy_id, scope, space, dimensions, partition)
WHERE dimensions IS NOT NULL
"""
_PLACE = """
CREATE STATISTICS entries_place (mcv, dependencies)
    ON tenant, policy_id, scope, space, dimensions, partition FROM entries
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

# With pgvector's own 64, parts of a cell are not reached when many cells hold the same prompts.
_BUILD = "m = 16, ef_construction = 200"


def upgrade() -> None:
    indexed = _indexed()
    for dimensions in indexed:
        op.execute(f"DROP INDEX entries_by_vector_{dimensions}")
    op.execute(_COLUMNS)
    _fill()
    op.execute("DROP INDEX entries_by_partition")
    op.execute("DROP INDEX entries_by_age")
    # No plan depends on how large a cell is any more.
    op.execute("DROP STATISTICS entries_place")
    for statement in (_CHECK, _BY_AGE.format(include=" INCLUDE (bytes)"), _BY_CELL):
        op.execute(statement)
    for dimensions in indexed:
        coded = dimensions + CODE_DIMENSIONS
        _index(dimensions, f"(embedding || code)::halfvec({coded})", f" WITH ({_BUILD})")
    _make_unique_ones_last()


def downgrade() -> None:
    indexed = _indexed()
    for dimensions in indexed:
        op.execute(f"DROP INDEX entries_by_vector_{dimensions}")
    for index in ("entries_by_cell", "entries_by_age"):
        op.execute(f"DROP INDEX {index}")
    op.execute(_WITHOUT)
    for dimensions in indexed:
        _index(dimensions, f"embedding::halfvec({dimensions})", "")
    for statement in (_BY_AGE.format(include=""), _PLACE, _BY_PARTITION):
        op.execute(statement)
    _make_unique_ones_last()


def _make_unique_ones_last() -> None:
    for index in ("entries_by_prompt", "entries_by_exact_key"):
        op.execute(f"DROP INDEX {index}")
    for statement in _UNIQUE:
        op.execute(statement)


def _indexed() -> list[int]:
    """The numbers of dimensions indexed so far, those of `migrate index` included."""
    rows = op.get_bind().execute(
        text(
            "SELECT substring(c.relname FROM '[0-9]+$')::integer FROM pg_index i "
            "JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass('entries') "
            "AND c.relname ~ '^entries_by_vector_[0-9]+$' ORDER BY 1"
        )
    )
    return [dimensions for (dimensions,) in rows]


def _index(dimensions: int, expression: str, options: str) -> None:
    op.execute(
        f"CREATE INDEX entries_by_vector_{dimensions} ON entries "
        f"USING hnsw (({expression}) halfvec_cosine_ops){options} WHERE dimensions = {dimensions}"
    )


def _fill() -> None:
    connection = op.get_bind()
    for row in connection.execute(text(_CELLS)).mappings().all():
        parts = dict(row)
        cell = cell_of(**parts)
        code = "[" + ",".join(map(repr, code_of(cell).tolist())) + "]"
        connection.execute(text(_FILL), {**parts, "cell": cell, "code": code})
