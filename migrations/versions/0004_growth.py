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

# A cache is written and emptied all the time: vacuum at a tenth, not at a fifth, and look at what
# came after a twentieth. Index entries of dead rows lengthen every walk until then.
_VACUUM = (
    ("entries", "autovacuum_vacuum_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05"),
    ("aliases", "autovacuum_vacuum_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05"),
)


def upgrade() -> None:
    op.execute(_HIT_COUNTS)
    for table, parameters in _VACUUM:
        op.execute(f"ALTER TABLE {table} SET ({parameters})")


def downgrade() -> None:
    for table, parameters in _VACUUM:
        names = ", ".join(part.split("=")[0].strip() for part in parameters.split(","))
        op.execute(f"ALTER TABLE {table} RESET ({names})")
    op.execute("DROP TABLE hit_counts")
