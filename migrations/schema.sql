-- The schema at the newest revision, as pg_dump shows it: for reading, and compared by a test.
-- Written by: python -m tests.store.dump_schema

CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;

COMMENT ON EXTENSION vector IS 'vector data type and ivfflat and hnsw access methods';

CREATE TABLE public.aliases (
    tenant text NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    exact_key bytea NOT NULL,
    entry_id uuid NOT NULL,
    similarity double precision NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.1', autovacuum_analyze_scale_factor='0.05');

CREATE TABLE public.entries (
    tenant text NOT NULL,
    id uuid NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    exact_key bytea,
    space text NOT NULL,
    dimensions integer,
    partition bytea NOT NULL,
    prompt_hash bytea NOT NULL,
    embedding public.halfvec,
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
    created_at timestamp with time zone NOT NULL,
    exact_expires_at timestamp with time zone,
    semantic_expires_at timestamp with time zone,
    quarantined_at timestamp with time zone,
    leaf bytea,
    bytes integer GENERATED ALWAYS AS (((octet_length(body) + octet_length(prompt_text)) + (COALESCE(dimensions, 0) * 2))) STORED NOT NULL,
    inflated_bytes integer,
    CONSTRAINT entries_dimensions CHECK ((NOT (dimensions IS DISTINCT FROM public.vector_dims(embedding)))),
    CONSTRAINT entries_exact_tier CHECK (((exact_key IS NULL) = (exact_expires_at IS NULL))),
    CONSTRAINT entries_findable CHECK (((exact_key IS NOT NULL) OR (embedding IS NOT NULL))),
    CONSTRAINT entries_leaf CHECK (((leaf IS NULL) = (dimensions IS NULL))),
    CONSTRAINT entries_semantic_tier CHECK (((embedding IS NULL) = (semantic_expires_at IS NULL)))
)
WITH (autovacuum_analyze_scale_factor='0.05', autovacuum_vacuum_scale_factor='0.1', toast.autovacuum_vacuum_scale_factor='0.1');
ALTER TABLE ONLY public.entries ALTER COLUMN embedding SET STORAGE MAIN;
ALTER TABLE ONLY public.entries ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE ONLY public.entries ALTER COLUMN prompt_text SET STORAGE EXTERNAL;
ALTER TABLE ONLY public.entries ALTER COLUMN leaf SET STORAGE PLAIN;

CREATE TABLE public.hit_counts (
    tenant text NOT NULL,
    entry_id uuid NOT NULL,
    policy_id text NOT NULL,
    hits bigint NOT NULL,
    tokens_saved bigint NOT NULL,
    last_hit_at timestamp with time zone NOT NULL
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.05');

CREATE TABLE public.leaves (
    tenant text NOT NULL,
    leaf bytea NOT NULL,
    cell bytea NOT NULL,
    dimensions integer NOT NULL,
    centroid public.halfvec NOT NULL,
    code public.halfvec NOT NULL,
    opened_at timestamp with time zone DEFAULT now() NOT NULL,
    splitting boolean DEFAULT false NOT NULL,
    closed_at timestamp with time zone,
    CONSTRAINT leaves_dimensions CHECK (((dimensions = public.vector_dims(centroid)) AND (public.vector_dims(code) = 16))),
    CONSTRAINT leaves_splitting CHECK (((closed_at IS NOT NULL) OR (NOT splitting)))
)
WITH (toast_tuple_target='8160');
ALTER TABLE ONLY public.leaves ALTER COLUMN leaf SET STORAGE PLAIN;
ALTER TABLE ONLY public.leaves ALTER COLUMN cell SET STORAGE PLAIN;
ALTER TABLE ONLY public.leaves ALTER COLUMN centroid SET STORAGE MAIN;
ALTER TABLE ONLY public.leaves ALTER COLUMN code SET STORAGE PLAIN;

CREATE TABLE public.policies (
    tenant text NOT NULL,
    id text NOT NULL,
    document jsonb,
    revision bigint NOT NULL,
    generation bigint NOT NULL,
    oldest_generation bigint NOT NULL,
    ttl_seconds integer NOT NULL,
    semantic_ttl_seconds integer NOT NULL,
    exact_floor timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    semantic_floor timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    alias_floor timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    purged_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL
);

CREATE TABLE public.shadow_hits (
    tenant text NOT NULL,
    id uuid NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    exact_key bytea,
    entry_id uuid NOT NULL,
    tier text NOT NULL,
    similarity double precision NOT NULL,
    prompt_text bytea NOT NULL,
    created_at timestamp with time zone NOT NULL
);

CREATE TABLE public.verdicts (
    tenant text NOT NULL,
    id uuid NOT NULL,
    entry_id uuid NOT NULL,
    policy_id text NOT NULL,
    scope text NOT NULL,
    verdict text NOT NULL,
    source text NOT NULL,
    prompt_text bytea,
    embedding public.halfvec,
    note text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT verdicts_verdict CHECK ((verdict = ANY (ARRAY['right'::text, 'wrong'::text])))
);

ALTER TABLE ONLY public.aliases
    ADD CONSTRAINT aliases_pkey PRIMARY KEY (tenant, policy_id, scope, exact_key);

ALTER TABLE ONLY public.entries
    ADD CONSTRAINT entries_pkey PRIMARY KEY (tenant, id);

ALTER TABLE ONLY public.hit_counts
    ADD CONSTRAINT hit_counts_pkey PRIMARY KEY (tenant, entry_id);

ALTER TABLE ONLY public.leaves
    ADD CONSTRAINT leaves_pkey PRIMARY KEY (tenant, leaf);

ALTER TABLE ONLY public.policies
    ADD CONSTRAINT policies_pkey PRIMARY KEY (tenant, id);

ALTER TABLE ONLY public.shadow_hits
    ADD CONSTRAINT shadow_hits_pkey PRIMARY KEY (tenant, id);

ALTER TABLE ONLY public.verdicts
    ADD CONSTRAINT verdicts_pkey PRIMARY KEY (tenant, id);

CREATE INDEX aliases_by_entry ON public.aliases USING btree (tenant, entry_id);

CREATE INDEX aliases_by_expiry ON public.aliases USING btree (tenant, policy_id, expires_at);

CREATE INDEX entries_by_age ON public.entries USING btree (tenant, policy_id, created_at) INCLUDE (bytes);

CREATE UNIQUE INDEX entries_by_exact_key ON public.entries USING btree (tenant, policy_id, scope, exact_key) WHERE (exact_key IS NOT NULL);

CREATE INDEX entries_by_expiry ON public.entries USING btree (tenant, policy_id, GREATEST(exact_expires_at, semantic_expires_at));

CREATE INDEX entries_by_leaf ON public.entries USING btree (tenant, leaf, semantic_expires_at) WHERE (leaf IS NOT NULL);

CREATE UNIQUE INDEX entries_by_prompt ON public.entries USING btree (tenant, policy_id, scope, space, dimensions, partition, prompt_hash) WHERE (exact_key IS NULL);

CREATE INDEX leaves_by_cell ON public.leaves USING btree (tenant, cell, opened_at);

CREATE INDEX leaves_by_vector_1024 ON public.leaves USING hnsw ((((centroid OPERATOR(public.||) code))::public.halfvec(1040)) public.halfvec_cosine_ops) WITH (m='16', ef_construction='200') WHERE (dimensions = 1024);

CREATE INDEX leaves_by_vector_1536 ON public.leaves USING hnsw ((((centroid OPERATOR(public.||) code))::public.halfvec(1552)) public.halfvec_cosine_ops) WITH (m='16', ef_construction='200') WHERE (dimensions = 1536);

CREATE INDEX leaves_by_vector_3072 ON public.leaves USING hnsw ((((centroid OPERATOR(public.||) code))::public.halfvec(3088)) public.halfvec_cosine_ops) WITH (m='16', ef_construction='200') WHERE (dimensions = 3072);

CREATE INDEX leaves_by_vector_384 ON public.leaves USING hnsw ((((centroid OPERATOR(public.||) code))::public.halfvec(400)) public.halfvec_cosine_ops) WITH (m='16', ef_construction='200') WHERE (dimensions = 384);

CREATE INDEX leaves_by_vector_512 ON public.leaves USING hnsw ((((centroid OPERATOR(public.||) code))::public.halfvec(528)) public.halfvec_cosine_ops) WITH (m='16', ef_construction='200') WHERE (dimensions = 512);

CREATE INDEX leaves_by_vector_768 ON public.leaves USING hnsw ((((centroid OPERATOR(public.||) code))::public.halfvec(784)) public.halfvec_cosine_ops) WITH (m='16', ef_construction='200') WHERE (dimensions = 768);

CREATE INDEX leaves_closed ON public.leaves USING btree (tenant, closed_at) WHERE (closed_at IS NOT NULL);

CREATE INDEX leaves_splitting ON public.leaves USING btree (tenant, cell, opened_at) WHERE splitting;

CREATE INDEX shadow_hits_by_age ON public.shadow_hits USING btree (tenant, policy_id, created_at, id);

CREATE INDEX shadow_hits_by_entry ON public.shadow_hits USING btree (tenant, entry_id);

CREATE INDEX verdicts_by_age ON public.verdicts USING btree (tenant, policy_id, created_at, id);

CREATE INDEX verdicts_by_entry ON public.verdicts USING btree (tenant, entry_id);
