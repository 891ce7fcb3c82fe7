"""How often an entry answered: evictions go by value; and tables that stay small."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Apart from the entries: counting a hit must not write a wide row, and its vector's index, anew. No
# index but the key's, and room in every page, so that counts are updated in place.
_HIT_COUNTS = """
CREATE TABLE hit_counts (
    tenant text NOT NULL,
    entry_id uuid NOT NULL,
    policy_id text NOT NULL,
    hits bigint NOT NULL,
    tokens_saved bigint NOT NULL,
    last_hit_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, entry_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)
"""

# Freeing a dead row mends the HNSW graph around it. That reaches nearly every element once a tenth
# is dead, and then costs as much as putting them all again: so not at every tenth. Beyond a third
# the dead lengthen every walk. Bodies kept out of line are in no such index, nor are aliases; and
# the planner is to know what came after a twentieth.
_VACUUM = (
    (
        "entries",
        "autovacuum_vacuum_scale_factor = 0.3, autovacuum_analyze_scale_factor = 0.05, "
        "toast.autovacuum_vacuum_scale_factor = 0.1",
    ),
    ("aliases", "autovacuum_vacuum_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05"),
)


# The length of a body that is stored compressed; null where it is stored as it came.
_INFLATED = "ALTER TABLE entries ADD COLUMN inflated_bytes integer"


def upgrade() -> None:
    op.execute(_INFLATED)
    op.execute(_HIT_COUNTS)
    for table, parameters in _VACUUM:
        op.execute(f"ALTER TABLE {table} SET ({parameters})")


def downgrade() -> None:
    for table, parameters in _VACUUM:
        names = ", ".join(part.split("=")[0].strip() for part in parameters.split(","))
        op.execute(f"ALTER TABLE {table} RESET ({names})")
    op.execute("DROP TABLE hit_counts")
    # Without the column nothing would tell a frame from a body.
    op.execute("DELETE FROM entries WHERE inflated_bytes IS NOT NULL")
    op.execute("ALTER TABLE entries DROP COLUMN inflated_bytes")
