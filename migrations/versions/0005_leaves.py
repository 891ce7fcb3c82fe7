"""Cells that outgrow scanning are split into leaves, and the HNSW index is over those.

An HNSW graph in which a large cell lies beside smaller ones loses its way to those, whatever is
appended to their vectors. So the entries leave it: each belongs to a leaf, which is scanned, and
the graph leads to the leaves of the very large cells. Cells that are large already are split by the
service, bit by bit, when they are asked next.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from cachesvc.core.cells import CODE_DIMENSIONS, cell_of, code_of

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_LEAVES = f"""
CREATE TABLE leaves (
    tenant text NOT NULL,
    leaf bytea NOT NULL,
    cell bytea NOT NULL,
    dimensions integer NOT NULL,
    centroid halfvec NOT NULL,
    code halfvec NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now(),
    splitting boolean NOT NULL DEFAULT false,
    closed_at timestamptz,
    CONSTRAINT leaves_dimensions CHECK (
        dimensions = vector_dims(centroid) AND vector_dims(code) = {CODE_DIMENSIONS}
    ),
    CONSTRAINT leaves_splitting CHECK (closed_at IS NOT NULL OR NOT splitting)
) WITH (toast_tuple_target = 8160)
"""

# A search reads many centroids: they stay in the row.
_STORAGE = """
ALTER TABLE leaves
    ALTER COLUMN centroid SET STORAGE MAIN,
    ALTER COLUMN code SET STORAGE PLAIN,
    ALTER COLUMN leaf SET STORAGE PLAIN,
    ALTER COLUMN cell SET STORAGE PLAIN
"""

# No graph is to be mended where a row is freed any more, so that vacuum may come as often as its
# leaves are split.
_VACUUM = "ALTER TABLE entries SET (autovacuum_vacuum_scale_factor = {share})"

_LEAF_INDEXES = (
    "CREATE INDEX leaves_by_cell ON leaves (tenant, cell, opened_at)",
    "CREATE INDEX leaves_splitting ON leaves (tenant, cell, opened_at) WHERE splitting",
    "CREATE INDEX leaves_closed ON leaves (tenant, closed_at) WHERE closed_at IS NOT NULL",
    "ALTER TABLE leaves ADD PRIMARY KEY (tenant, leaf)",
)

_WITHOUT_CODES = """
ALTER TABLE entries
    DROP CONSTRAINT entries_cell,
    DROP COLUMN code
"""

_CHECK = """
ALTER TABLE entries
    ADD CONSTRAINT entries_leaf CHECK ((leaf IS NULL) = (dimensions IS NULL))
"""

_WITH_CODES = """
ALTER TABLE entries
    DROP CONSTRAINT entries_leaf,
    ADD COLUMN code halfvec,
    ALTER COLUMN code SET STORAGE PLAIN
"""

_OLD_CHECK = f"""
ALTER TABLE entries ADD CONSTRAINT entries_cell CHECK (
    (cell IS NULL) = (dimensions IS NULL) AND (code IS NULL) = (dimensions IS NULL)
    AND (code IS NULL OR vector_dims(code) = {CODE_DIMENSIONS})
)
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

_BUILD = "m = 16, ef_construction = 200"

# Made last, and in this order: on a table too small for statistics many indexes seem to cost the
# same, and the planner takes the one made last. Those that can be used for a few lookups only, and
# are unique, come after the key, and the key after the others.
_LAST = (
    "ALTER TABLE entries DROP CONSTRAINT entries_pkey",
    "ALTER TABLE entries ADD PRIMARY KEY (tenant, id)",
    "DROP INDEX entries_by_prompt",
    """
    CREATE UNIQUE INDEX entries_by_prompt ON entries
        (tenant, policy_id, scope, space, dimensions, partition, prompt_hash)
    WHERE exact_key IS NULL
    """,
    "DROP INDEX entries_by_exact_key",
    """
    CREATE UNIQUE INDEX entries_by_exact_key ON entries (tenant, policy_id, scope, exact_key)
    WHERE exact_key IS NOT NULL
    """,
)


def upgrade() -> None:
    indexed = _indexed("entries")
    for dimensions in indexed:
        op.execute(f"DROP INDEX entries_by_vector_{dimensions}")
    op.execute(_WITHOUT_CODES)
    op.execute("ALTER TABLE entries RENAME COLUMN cell TO leaf")
    op.execute("ALTER INDEX entries_by_cell RENAME TO entries_by_leaf")
    for statement in (_CHECK, _LEAVES, _STORAGE, *_LEAF_INDEXES, _VACUUM.format(share=0.1)):
        op.execute(statement)
    for dimensions in indexed:
        _index("leaves", dimensions, "centroid")
    for statement in _LAST:
        op.execute(statement)


def downgrade() -> None:
    indexed = _indexed("leaves")
    op.execute("DROP TABLE leaves")
    op.execute(_WITH_CODES)
    op.execute("ALTER TABLE entries RENAME COLUMN leaf TO cell")
    op.execute("ALTER INDEX entries_by_leaf RENAME TO entries_by_cell")
    _fill()
    op.execute(_OLD_CHECK)
    op.execute(_VACUUM.format(share=0.3))
    for dimensions in indexed:
        _index("entries", dimensions, "embedding")


def _indexed(table: str) -> list[int]:
    """The numbers of dimensions indexed so far, those of `migrate index` included."""
    rows = op.get_bind().execute(
        text(
            "SELECT substring(c.relname FROM '[0-9]+$')::integer FROM pg_index i "
            "JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass(:name) "
            "AND c.relname ~ ('^' || :name || '_by_vector_[0-9]+$') ORDER BY 1"
        ),
        {"name": table},
    )
    return [dimensions for (dimensions,) in rows]


def _index(table: str, dimensions: int, vector: str) -> None:
    op.execute(
        f"CREATE INDEX {table}_by_vector_{dimensions} ON {table} "
        f"USING hnsw ((({vector} || code)::halfvec({dimensions + CODE_DIMENSIONS})) "
        f"halfvec_cosine_ops) WITH ({_BUILD}) WHERE dimensions = {dimensions}"
    )


def _fill() -> None:
    connection = op.get_bind()
    for row in connection.execute(text(_CELLS)).mappings().all():
        parts = dict(row)
        cell = cell_of(**parts)
        code = "[" + ",".join(map(repr, code_of(cell).tolist())) + "]"
        connection.execute(text(_FILL), {**parts, "cell": cell, "code": code})
