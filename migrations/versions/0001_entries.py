"""Policies, entries and aliases.

Every primary key, unique key and index begins with the tenant, which is also the distribution
column where the schema is spread over several machines.
"""

from __future__ import annotations

from alembic import op

from cachesvc.errors import StartError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INDEXED_DIMENSIONS = (384, 512, 768, 1024, 1536, 3072)
_OLDEST_POSTGRES = 150_000
_OLDEST_PGVECTOR = (0, 8)

_POLICIES = """
CREATE TABLE policies (
    tenant text NOT NULL,
    id text NOT NULL,
    document jsonb,
    revision bigint NOT NULL,
    generation bigint NOT NULL,
    oldest_generation bigint NOT NULL,
    ttl_seconds integer NOT NULL,
    semantic_ttl_seconds integer NOT NULL,
    exact_floor timestamptz NOT NULL DEFAULT '-infinity',
    semantic_floor timestamptz NOT NULL DEFAULT '-infinity',
    alias_floor timestamptz NOT NULL DEFAULT '-infinity',
    purged_at timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (tenant, id)
)
"""

_ENTRIES = """
CREATE TABLE entries (
    tenant text NOT NULL,
    id uuid NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    exact_key bytea,
    space text NOT NULL,
    dimensions integer,
    partition bytea NOT NULL,
    prompt_hash bytea NOT NULL,
    embedding halfvec,
    body bytea NOT NULL,
    media_type text,
    prompt_text bytea NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    model text NOT NULL,
    tags text[] NOT NULL,
    upstream_ms double precision,
    generation bigint NOT NULL,
    provenance text NOT NULL,
    created_at timestamptz NOT NULL,
    exact_expires_at timestamptz,
    semantic_expires_at timestamptz,
    quarantined_at timestamptz,
    PRIMARY KEY (tenant, id),
    CONSTRAINT entries_findable CHECK (exact_key IS NOT NULL OR embedding IS NOT NULL),
    CONSTRAINT entries_exact_tier CHECK ((exact_key IS NULL) = (exact_expires_at IS NULL)),
    CONSTRAINT entries_semantic_tier CHECK ((embedding IS NULL) = (semantic_expires_at IS NULL)),
    CONSTRAINT entries_dimensions CHECK (dimensions IS NOT DISTINCT FROM vector_dims(embedding))
)
"""

# Vectors stay in the row, because an exact scan reads all of them; bodies and prompts go out of it
# when the row is long, because a scan reads none of them.
_STORAGE = """
ALTER TABLE entries
    ALTER COLUMN embedding SET STORAGE MAIN,
    ALTER COLUMN body SET STORAGE EXTERNAL,
    ALTER COLUMN prompt_text SET STORAGE EXTERNAL
"""

# In this order on purpose. On a table too small for statistics many indexes seem to cost the same,
# and the planner then takes the one made last: that must be the unique one.
_INDEXES = (
    # What isolates goes together: without this the planner takes a large partition for one row.
    """
    CREATE STATISTICS entries_place (mcv, dependencies)
        ON tenant, policy_id, scope, space, dimensions, partition FROM entries
    """,
    """
    CREATE INDEX entries_by_expiry ON entries
        (tenant, policy_id, (greatest(exact_expires_at, semantic_expires_at)))
    """,
    "CREATE INDEX entries_by_age ON entries (tenant, policy_id, created_at)",
    # The exact scan of a small partition.
    """
    CREATE INDEX entries_by_partition ON entries
        (tenant, policy_id, scope, space, dimensions, partition)
    WHERE dimensions IS NOT NULL
    """,
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

_ALIASES = """
CREATE TABLE aliases (
    tenant text NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    exact_key bytea NOT NULL,
    entry_id uuid NOT NULL,
    similarity double precision NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
)
"""

_ALIAS_INDEXES = (
    "CREATE INDEX aliases_by_expiry ON aliases (tenant, policy_id, expires_at)",
    "CREATE INDEX aliases_by_entry ON aliases (tenant, entry_id)",
    "ALTER TABLE aliases ADD PRIMARY KEY (tenant, policy_id, scope, exact_key)",
)


def upgrade() -> None:
    _check_server()
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _check_pgvector()
    for statement in (_POLICIES, _ENTRIES, _STORAGE, _ALIASES):
        op.execute(statement)
    for dimensions in INDEXED_DIMENSIONS:
        op.execute(
            f"CREATE INDEX entries_by_vector_{dimensions} ON entries "
            f"USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops) "
            f"WHERE dimensions = {dimensions}"
        )
    for statement in (*_INDEXES, *_ALIAS_INDEXES):
        op.execute(statement)


def downgrade() -> None:
    # The extension stays: others in the same database may use it.
    for table in ("aliases", "entries", "policies"):
        op.execute(f"DROP TABLE {table}")


def _check_server() -> None:
    number = op.get_bind().exec_driver_sql("SHOW server_version_num").scalar_one()
    if int(number) < _OLDEST_POSTGRES:
        raise StartError(f"PostgreSQL {int(number) // 10_000} is too old: 15 or newer is needed")


def _check_pgvector() -> None:
    version = (
        op.get_bind()
        .exec_driver_sql("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        .scalar_one()
    )
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_PGVECTOR:
        raise StartError(
            f"pgvector {version} is too old: 0.8 or newer is needed; "
            "install it and run ALTER EXTENSION vector UPDATE"
        )
