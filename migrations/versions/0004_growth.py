"""What an entry weighs and how often it answered: evictions go by value, and tables stay small."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BYTES = """
ALTER TABLE entries ADD COLUMN bytes integer NOT NULL GENERATED ALWAYS AS (
    octet_length(body) + octet_length(prompt_text) + coalesce(dimensions, 0) * 2
) STORED
"""

# With the weight in it, what a policy holds is summed without a look at its rows.
_BY_AGE = "CREATE INDEX entries_by_age ON entries (tenant, policy_id, created_at){include}"

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
    op.execute(_BYTES)
    op.execute("DROP INDEX entries_by_age")
    op.execute(_BY_AGE.format(include=" INCLUDE (bytes)"))
    op.execute(_HIT_COUNTS)
    for table, parameters in _VACUUM:
        op.execute(f"ALTER TABLE {table} SET ({parameters})")


def downgrade() -> None:
    for table, parameters in _VACUUM:
        names = ", ".join(part.split("=")[0].strip() for part in parameters.split(","))
        op.execute(f"ALTER TABLE {table} RESET ({names})")
    op.execute("DROP TABLE hit_counts")
    op.execute("DROP INDEX entries_by_age")
    op.execute(_BY_AGE.format(include=""))
    op.execute("ALTER TABLE entries DROP COLUMN bytes")
