"""Verdicts of answers, and what a policy in shadow would have served.

Both are records, not answers: what they tell of may be gone. They begin with the tenant, too.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_VERDICTS = """
CREATE TABLE verdicts (
    tenant text NOT NULL,
    id uuid NOT NULL,
    entry_id uuid NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    verdict text NOT NULL,
    source text NOT NULL,
    prompt_text bytea,
    embedding halfvec,
    note text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, id),
    CONSTRAINT verdicts_verdict CHECK (verdict IN ('right', 'wrong'))
)
"""

_SHADOW_HITS = """
CREATE TABLE shadow_hits (
    tenant text NOT NULL,
    id uuid NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    exact_key bytea,
    entry_id uuid NOT NULL,
    tier text NOT NULL,
    similarity double precision NOT NULL,
    prompt_text bytea NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, id)
)
"""

_INDEXES = (
    "CREATE INDEX verdicts_by_age ON verdicts (tenant, policy_id, created_at, id)",
    "CREATE INDEX verdicts_by_entry ON verdicts (tenant, entry_id)",
    "CREATE INDEX shadow_hits_by_age ON shadow_hits (tenant, policy_id, created_at, id)",
    "CREATE INDEX shadow_hits_by_entry ON shadow_hits (tenant, entry_id)",
)


def upgrade() -> None:
    for statement in (_VERDICTS, _SHADOW_HITS, *_INDEXES):
        op.execute(statement)


def downgrade() -> None:
    for table in ("shadow_hits", "verdicts"):
        op.execute(f"DROP TABLE {table}")
