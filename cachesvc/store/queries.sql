-- Every statement of cachesvc. A heading gives a statement its name; its parameters stand behind it.
--
-- An entry lives on a tier while all of these hold:
--   now < least(its expiry on that tier, created_at + the policy's TTL of that tier in force)
--   created_at > the policy's floor of that tier   (what a lower TTL has killed stays dead)
--   generation >= the policy's oldest generation   (what a purge has killed stays dead)
--   it is not quarantined
-- A policy's revision is never used twice, not even after the schema was made anew: a service that
-- remembers one would take another policy for it. So it is the clock's, in microseconds, and grows.
-- Every statement begins with the tenant: nothing is ever found or changed across two of them.


-- policy -- one policy: $1 tenant, $2 id
SELECT id, document, revision, generation
FROM policies
WHERE tenant = $1 AND id = $2 AND document IS NOT NULL


-- find_exact -- the entry of an exact key and the one its alias points at: $1 tenant, of each asker: policy, scope, exact key, oldest age, space or empty, partition or empty
SELECT
    q.asked, p.revision, p.generation, now() AS now,
    f.id, f.alias, f.similarity, f.created_at, f.expires_at, f.quarantined,
    f.fresh AND NOT f.quarantined AS lives,
    f.created_at >= now() - q.oldest AS young,
    CASE WHEN f.fresh AND NOT f.quarantined THEN f.body END AS body,
    f.inflated_bytes, f.media_type, f.prompt_tokens, f.completion_tokens, f.upstream_ms
FROM {asked: policy_id text, scope text, exact_key bytea, oldest interval, space text, partition bytea}
CROSS JOIN LATERAL (
    -- One by one, by the key: a join would read all of a tenant's where it believes they are few.
    SELECT * FROM policies p
    WHERE p.tenant = $1 AND p.id = q.policy_id AND p.document IS NOT NULL
    LIMIT 1
) p
LEFT JOIN LATERAL (
    SELECT
        e.id, false AS alias, NULL::double precision AS similarity, e.created_at, x.expires_at,
        e.quarantined_at IS NOT NULL AS quarantined,
        now() < x.expires_at AND e.created_at > p.exact_floor AS fresh,
        e.body, e.inflated_bytes, e.media_type, e.prompt_tokens, e.completion_tokens, e.upstream_ms
    FROM entries e
    CROSS JOIN LATERAL (
        SELECT least(
            e.exact_expires_at, e.created_at + p.ttl_seconds * interval '1 second'
        ) AS expires_at
    ) x
    WHERE e.tenant = $1 AND e.policy_id = q.policy_id AND e.scope = q.scope
        AND e.exact_key = q.exact_key AND e.generation >= p.oldest_generation
    UNION ALL
    SELECT
        e.id, true, a.similarity, e.created_at, x.expires_at,
        e.quarantined_at IS NOT NULL,
        now() < x.expires_at
            AND e.created_at > p.semantic_floor AND a.created_at > p.exact_floor,
        e.body, e.inflated_bytes, e.media_type, e.prompt_tokens, e.completion_tokens, e.upstream_ms
    FROM (
        -- By its order the index is named: statistics of an empty table would take any, and then
        -- read all of a tenant's aliases. Where keys are equal there is no order, hence the range.
        SELECT a.* FROM aliases a
        WHERE a.tenant = $1 AND a.policy_id = q.policy_id AND a.scope = q.scope
            AND a.exact_key >= q.exact_key AND a.exact_key <= q.exact_key
        ORDER BY a.exact_key
        LIMIT 1
    ) a
    JOIN entries e
        ON e.tenant = $1 AND e.id = a.entry_id AND e.policy_id = q.policy_id AND e.scope = q.scope
        AND e.semantic_expires_at IS NOT NULL
    CROSS JOIN LATERAL (
        SELECT least(
            a.expires_at, a.created_at + p.ttl_seconds * interval '1 second',
            e.semantic_expires_at, e.created_at + p.semantic_ttl_seconds * interval '1 second'
        ) AS expires_at
    ) x
    WHERE a.created_at > p.alias_floor
        -- Whoever says what would be compared today is not answered with what was compared once.
        AND q.space IN ('', e.space) AND q.partition IN (''::bytea, e.partition)
        AND e.generation >= p.oldest_generation
) f ON true


-- scan_cell -- the nearest live entries of a cell that is believed to be one leaf, and whether it is: parameters as in find_nearest, $10 cell, $11 how many rows of it are read
WITH asked AS MATERIALIZED (
    -- Worked out once, not for each row.
    SELECT
        p.revision, p.generation, p.semantic_ttl_seconds * interval '1 second' AS ttl,
        p.oldest_generation,
        greatest(
            p.semantic_floor, now() - p.semantic_ttl_seconds * interval '1 second',
            now() - $8::interval
        ) AS since
    FROM policies p
    WHERE p.tenant = $1 AND p.id = $2 AND p.document IS NOT NULL
), scanned AS MATERIALIZED (
    -- No more than this is read, whatever of it lives; what lives is told apart after that.
    SELECT
        e.id, e.created_at,
        e.embedding::halfvec({dimensions}) <=> $6::halfvec({dimensions}) AS distance,
        -- The cell finds, its parts decide.
        e.policy_id = $2 AND e.scope = $3 AND e.space = $4
            AND e.dimensions = {dimensions} AND e.partition = $5
            AND e.created_at > (SELECT a.since FROM asked a)
            AND e.generation >= (SELECT a.oldest_generation FROM asked a)
            AND e.quarantined_at IS NULL AS lives
    FROM entries e
    WHERE e.tenant = $1 AND e.leaf = $10 AND e.semantic_expires_at > now()
    -- Each ORDER BY next to a table names the one index that has its order: where sorting
    -- is off no other is taken, whatever the planner believes of the table.
    ORDER BY e.semantic_expires_at DESC
    LIMIT $11::integer + 1
)
SELECT
    a.revision, a.generation, now() AS now,
    EXISTS (SELECT FROM leaves l WHERE l.tenant = $1 AND l.cell = $10::bytea) AS split,
    (SELECT count(*) FROM scanned) AS live,
    f.id, f.embedding, f.created_at, f.media_type, f.prompt_tokens, f.completion_tokens,
    f.upstream_ms, f.inflated_bytes, f.body,
    least(f.semantic_expires_at, f.created_at + a.ttl) AS expires_at
FROM asked a
LEFT JOIN LATERAL (
    SELECT
        e.id, e.embedding, e.created_at, e.semantic_expires_at, e.media_type,
        e.prompt_tokens, e.completion_tokens, e.upstream_ms, e.inflated_bytes,
        -- One answer at most is served; of the others, which may be long, nothing is read.
        CASE
            WHEN 1 - n.distance >= $9::double precision
                AND row_number() OVER (ORDER BY n.distance, n.created_at DESC) = 1
            THEN e.body
        END AS body
    FROM (
        SELECT s.id, s.distance, s.created_at
        FROM scanned s
        WHERE s.lives
        ORDER BY s.distance, s.created_at DESC
        LIMIT $7
    ) n
    LEFT JOIN LATERAL (
        -- One by one, by the key: a join would read all entries where it believes they are few.
        SELECT * FROM entries e WHERE e.tenant = $1 AND e.id = n.id
        LIMIT 1
    ) e ON true
) f ON true


-- whole_cell -- all live entries of a cell, one after another in binary, unless they are too many: $1 tenant, $2 policy, $3 scope, $4 space, $5 partition, $6 cell, $7 how many rows of it are read
WITH asked AS MATERIALIZED (
    SELECT
        p.revision, p.generation, p.semantic_ttl_seconds * interval '1 second' AS ttl,
        p.oldest_generation,
        greatest(
            p.semantic_floor, now() - p.semantic_ttl_seconds * interval '1 second'
        ) AS since
    FROM policies p
    WHERE p.tenant = $1 AND p.id = $2 AND p.document IS NOT NULL
)
SELECT
    a.revision, a.generation, now() AS now, w.live,
    CASE WHEN w.live <= $7 THEN w.entries END AS entries
FROM asked a
CROSS JOIN LATERAL (
    SELECT
        count(*) AS live,
        string_agg(
            uuid_send(r.id) || timestamptz_send(r.created_at)
            || timestamptz_send(least(r.semantic_expires_at, r.created_at + a.ttl))
            || halfvec_send(r.embedding::halfvec({dimensions})),
            ''::bytea
        ) FILTER (WHERE r.lives) AS entries
    FROM (
        SELECT e.*
        FROM (
            -- Of a cell that is split, what is in any leaf; and what was put before it was split.
            (
                SELECT l.leaf FROM leaves l
                WHERE l.tenant = $1 AND l.cell = $6::bytea AND l.leaf <> $6
                ORDER BY l.opened_at
            )
            UNION ALL
            SELECT $6
        ) l
        CROSS JOIN LATERAL (
            SELECT
                e.id, e.created_at, e.embedding, e.semantic_expires_at,
                e.policy_id = $2 AND e.scope = $3 AND e.space = $4
                    AND e.dimensions = {dimensions} AND e.partition = $5
                    AND e.created_at > a.since
                    AND e.generation >= a.oldest_generation
                    AND e.quarantined_at IS NULL AS lives
            FROM entries e
            WHERE e.tenant = $1 AND e.leaf = l.leaf AND e.semantic_expires_at > now()
            ORDER BY e.semantic_expires_at DESC
        ) e
        LIMIT $7::integer + 1
    ) r
) w


-- find_nearest -- the nearest live entries of a cell that is split into leaves, and whether it is: $1 tenant, $2 policy, $3 scope, $4 space, $5 partition, $6 vector, $7 how many, $8 oldest age, $9 the similarity from which the nearest one's answer is wanted, $10 vector and code, $11 cell, $12 how many rows of a leaf are read
WITH size AS MATERIALIZED (
    -- Counted and not estimated: statistics are always late, and one plan then serves every cell.
    SELECT count(*) AS leaves FROM (
        SELECT FROM leaves l WHERE l.tenant = $1 AND l.cell = $11::bytea
        ORDER BY l.opened_at
        LIMIT {ranked} + 1
    ) counted
), probed AS MATERIALIZED (
    -- Of some leaves, all are compared; where they are many, the HNSW index leads to the nearest.
    (
        SELECT ranked.leaf FROM (
            SELECT
                l.leaf, l.centroid::halfvec({dimensions}) <=> $6::halfvec({dimensions}) AS distance
            FROM leaves l
            WHERE (SELECT s.leaves FROM size s) <= {ranked}
                AND l.tenant = $1 AND l.cell = $11 AND l.leaf <> $11 AND l.closed_at IS NULL
            ORDER BY l.opened_at
            LIMIT {ranked}
        ) ranked
        ORDER BY ranked.distance
        LIMIT (SELECT CASE WHEN s.leaves > {many} THEN {more_probes} ELSE {probes} END FROM size s)
    )
    UNION ALL
    (
        SELECT l.leaf FROM leaves l
        WHERE (SELECT s.leaves FROM size s) > {ranked}
            AND l.tenant = $1 AND l.cell = $11 AND l.dimensions = {dimensions}
            AND l.leaf <> $11 AND l.closed_at IS NULL
        -- The code is the same all over the cell: within it this is the order of similarity.
        ORDER BY (l.centroid || l.code)::halfvec({coded}) <=> $10::halfvec({coded})
        LIMIT {most_probes}
    )
    UNION ALL
    -- What is being moved may still be in its old leaf.
    (
        SELECT l.leaf FROM leaves l
        WHERE l.tenant = $1 AND l.cell = $11 AND l.leaf <> $11 AND l.splitting
        ORDER BY l.opened_at
        LIMIT {splitting}
    )
    UNION ALL
    -- And what was put before the cell was split, or while all of its leaves were closed.
    SELECT $11
)
SELECT
    p.revision, p.generation, now() AS now, (SELECT s.leaves FROM size s) > 0 AS split,
    f.id, f.embedding, f.created_at, f.media_type, f.prompt_tokens, f.completion_tokens,
    f.upstream_ms, f.inflated_bytes, f.body,
    least(
        f.semantic_expires_at, f.created_at + p.semantic_ttl_seconds * interval '1 second'
    ) AS expires_at
FROM policies p
CROSS JOIN LATERAL (
    -- Worked out once, not for each row.
    SELECT greatest(
        p.semantic_floor, now() - p.semantic_ttl_seconds * interval '1 second', now() - $8::interval
    ) AS since
    OFFSET 0
) b
LEFT JOIN LATERAL (
    SELECT
        e.id, e.embedding, e.created_at, e.semantic_expires_at, e.media_type,
        e.prompt_tokens, e.completion_tokens, e.upstream_ms, e.inflated_bytes,
        -- One answer at most is served; of the others, which may be long, nothing is read.
        CASE
            WHEN 1 - n.distance >= $9::double precision
                AND row_number() OVER (ORDER BY n.distance, n.created_at DESC) = 1
            THEN e.body
        END AS body
    FROM (
        SELECT r.id, r.distance, r.created_at
        FROM probed l
        CROSS JOIN LATERAL (
            SELECT
                e.id, e.created_at,
                e.embedding::halfvec({dimensions}) <=> $6::halfvec({dimensions}) AS distance,
                -- The leaf finds, its parts decide.
                e.policy_id = $2 AND e.scope = $3 AND e.space = $4
                    AND e.dimensions = {dimensions} AND e.partition = $5
                    AND e.created_at > b.since
                    AND e.generation >= p.oldest_generation
                    AND e.quarantined_at IS NULL AS lives
            FROM entries e
            WHERE e.tenant = $1 AND e.leaf = l.leaf AND e.semantic_expires_at > now()
            -- No more than this is read, whatever of it lives: also of one that waits to be split.
            ORDER BY e.semantic_expires_at DESC
            LIMIT $12::integer
        ) r
        WHERE r.lives
        ORDER BY r.distance, r.created_at DESC
        LIMIT $7
    ) n
    LEFT JOIN LATERAL (
        -- One by one, by the key: a join would read all entries where it believes they are few.
        SELECT * FROM entries e WHERE e.tenant = $1 AND e.id = n.id
        LIMIT 1
    ) e ON true
) f ON true
WHERE p.tenant = $1 AND p.id = $2 AND p.document IS NOT NULL


-- nearest_leaf -- where a put into a cell that is split belongs; no row where there is none: $1 tenant, $2 cell, $3 vector, $4 vector and code
WITH size AS MATERIALIZED (
    SELECT count(*) AS leaves FROM (
        SELECT FROM leaves l WHERE l.tenant = $1 AND l.cell = $2::bytea
        ORDER BY l.opened_at
        LIMIT {ranked} + 1
    ) counted
)
(
    SELECT ranked.leaf FROM (
        SELECT
            l.leaf, l.centroid::halfvec({dimensions}) <=> $3::halfvec({dimensions}) AS distance
        FROM leaves l
        WHERE (SELECT s.leaves FROM size s) <= {ranked}
            AND l.tenant = $1 AND l.cell = $2 AND l.closed_at IS NULL
        ORDER BY l.opened_at
        LIMIT {ranked}
    ) ranked
    ORDER BY ranked.distance
    LIMIT 1
)
UNION ALL
(
    SELECT l.leaf FROM leaves l
    WHERE (SELECT s.leaves FROM size s) > {ranked}
        AND l.tenant = $1 AND l.cell = $2 AND l.dimensions = {dimensions} AND l.closed_at IS NULL
    ORDER BY (l.centroid || l.code)::halfvec({coded}) <=> $4::halfvec({coded})
    LIMIT 1
)


-- leaf -- a leaf, or a cell that is not split: $1 tenant, $2 its name, $3 how many rows are counted at most
SELECT
    l.cell, l.splitting,
    EXISTS (SELECT FROM leaves c WHERE c.tenant = $1 AND c.cell = $2) AS split,
    EXISTS (
        SELECT FROM leaves c
        WHERE c.tenant = $1 AND c.cell = coalesce(l.cell, $2) AND c.closed_at IS NULL
    ) AS open,
    (
        SELECT count(*) FROM (
            SELECT FROM entries e WHERE e.tenant = $1 AND e.leaf = $2
            ORDER BY e.semantic_expires_at
            LIMIT $3
        ) counted
    ) AS rows
FROM (SELECT) one LEFT JOIN leaves l ON l.tenant = $1 AND l.leaf = $2::bytea


-- leaf_rows -- the newest rows of a leaf: $1 tenant, $2 leaf, $3 how many
SELECT e.id, e.embedding FROM entries e
WHERE e.tenant = $1 AND e.leaf = $2
ORDER BY e.semantic_expires_at DESC
LIMIT $3


-- split_leaf -- from now on it is emptied, and no put goes there; no row where somebody else has split it: $1 tenant, $2 leaf, $3 cell, $4 its centroid, $5 the cell's code, $6 whether it was being split before
INSERT INTO leaves AS l (tenant, leaf, cell, dimensions, centroid, code, splitting, closed_at)
VALUES ($1, $2, $3, vector_dims($4::halfvec), $4, $5::halfvec, true, now())
ON CONFLICT (tenant, leaf) DO UPDATE
SET centroid = excluded.centroid, splitting = true, closed_at = now()
WHERE l.splitting = $6
RETURNING 1


-- add_leaves -- $1 tenant, $2 cell, $3 the cell's code, then arrays: $4 leaves, $5 centroids
INSERT INTO leaves (tenant, leaf, cell, dimensions, centroid, code)
SELECT $1, n.leaf, $2, vector_dims(n.centroid), n.centroid, $3::halfvec
FROM unnest($4::bytea[], $5::halfvec[]) n (leaf, centroid)


-- leaves_near -- the leaves nearest to one that is being split: $1 tenant, $2 cell, $3 leaf, $4 how many
SELECT l.leaf, l.centroid
FROM leaves l
WHERE l.tenant = $1 AND l.cell = $2 AND l.closed_at IS NULL
ORDER BY l.centroid <=> (SELECT o.centroid FROM leaves o WHERE o.tenant = $1 AND o.leaf = $3)
LIMIT $4


-- move_rows -- how many were moved: $1 tenant, $2 the leaf they are in, then arrays: $3 ids, $4 the leaves they go to
WITH locked AS MATERIALIZED (
    -- Sought by their ids, whatever the planner believes: by the leaf, or by the tenant, all of a
    -- large one would be read for a few. What somebody is changing is left: nobody waits in a circle.
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.id = ANY ($3::uuid[]) AND e.leaf IS NOT DISTINCT FROM $2::bytea
    ORDER BY e.id
    FOR NO KEY UPDATE SKIP LOCKED
), moved AS (
    UPDATE entries e SET leaf = ($4::bytea[])[array_position($3, e.id)]
    WHERE e.tenant = $1 AND e.id = ANY (ARRAY(SELECT l.id FROM locked l))
    RETURNING 1
)
SELECT count(*) FROM moved


-- split_tenants -- those that have a large cell
SELECT DISTINCT tenant FROM leaves ORDER BY tenant


-- leaf_is_empty -- it was split, and nothing of it is left to be moved: $1 tenant, $2 leaf
UPDATE leaves l SET splitting = false, closed_at = now()
WHERE l.tenant = $1 AND l.leaf = $2 AND l.splitting
    AND NOT EXISTS (SELECT FROM entries e WHERE e.tenant = $1 AND e.leaf = $2)


-- unfinished_leaves -- those being split: $1 tenant, $2 how many
SELECT l.leaf FROM leaves l
WHERE l.tenant = $1 AND l.closed_at IS NOT NULL AND l.splitting
ORDER BY l.closed_at
LIMIT $2


-- close_leaves -- those of the next so many names that hold nothing: $1 tenant, $2 the last name seen, $3 how many
WITH next AS MATERIALIZED (
    SELECT l.leaf FROM leaves l WHERE l.tenant = $1 AND l.leaf > $2::bytea
    ORDER BY l.leaf
    LIMIT $3
), closed AS (
    UPDATE leaves l SET closed_at = now()
    WHERE l.tenant = $1 AND l.leaf = ANY (ARRAY(SELECT n.leaf FROM next n))
        -- A new one holds nothing until the first rows are moved there.
        AND l.closed_at IS NULL AND l.opened_at < now() - interval '10 minutes'
        AND NOT EXISTS (SELECT FROM entries e WHERE e.tenant = $1 AND e.leaf = l.leaf)
)
SELECT n.leaf AS last FROM next n ORDER BY n.leaf DESC LIMIT 1


-- leaf_sizes -- of the next so many open leaves: $1 tenant, $2 the last name seen, $3 how many, $4 how many rows are counted at most
SELECT
    l.leaf, l.dimensions,
    (
        SELECT count(*) FROM (
            SELECT FROM entries e WHERE e.tenant = $1 AND e.leaf = l.leaf
            ORDER BY e.semantic_expires_at
            LIMIT $4
        ) counted
    ) AS rows
FROM leaves l
WHERE l.tenant = $1 AND l.leaf > $2::bytea AND l.closed_at IS NULL
ORDER BY l.leaf
LIMIT $3


-- remove_leaves -- those that have been closed for longer than any put or move takes: $1 tenant, $2 how many
WITH old AS MATERIALIZED (
    SELECT
        l.leaf, l.splitting,
        EXISTS (SELECT FROM entries e WHERE e.tenant = $1 AND e.leaf = l.leaf) AS used
    FROM leaves l
    WHERE l.tenant = $1 AND l.closed_at < now() - interval '15 minutes'
    ORDER BY l.closed_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), reopened AS (
    UPDATE leaves l SET closed_at = NULL, opened_at = now()
    WHERE l.tenant = $1
        AND l.leaf = ANY (ARRAY(SELECT o.leaf FROM old o WHERE o.used AND NOT o.splitting))
), gone AS (
    DELETE FROM leaves l
    WHERE l.tenant = $1 AND l.leaf = ANY (ARRAY(SELECT o.leaf FROM old o WHERE NOT o.used))
    RETURNING 1
)
SELECT count(*) FROM gone


-- answer -- what a semantic candidate holds, while it lives: $1 tenant, $2 policy, $3 scope, $4 entry
SELECT e.body, e.inflated_bytes, e.media_type, e.prompt_tokens, e.completion_tokens, e.upstream_ms
FROM policies p JOIN entries e ON e.tenant = $1 AND e.policy_id = p.id
WHERE p.tenant = $1 AND p.id = $2 AND p.document IS NOT NULL
    AND e.scope = $3 AND e.id = $4
    AND e.semantic_expires_at > now()
    AND e.created_at > greatest(
        p.semantic_floor, now() - p.semantic_ttl_seconds * interval '1 second'
    )
    AND e.generation >= p.oldest_generation
    AND e.quarantined_at IS NULL


-- put_by_exact_key -- keep an answer under its exact key: $1 tenant, $2 policy, $3 scope, $4 exact key, $5 space, $6 partition, $7 prompt hash, $8 vector, $9 body, $10 media type, $11 prompt, $12 prompt tokens, $13 completion tokens, $14 model, $15 tags, $16 upstream ms, $17 generation or null, $18 provenance, $19 TTL asked, $20 id, $21 cell, $22 length of the body where $9 is a frame of it, $23 the leaf where it is known
WITH policy AS MATERIALIZED (
    -- Shared with other puts, but not with a purge, which changes this row before it deletes: a put
    -- that saw the old generation has committed by then, and one that waited here sees the new.
    SELECT
        p.generation,
        now() + least(p.ttl_seconds, $19::integer) * interval '1 second' AS exact_expires_at,
        now() + least(p.semantic_ttl_seconds, $19) * interval '1 second' AS semantic_expires_at
    FROM policies p
    WHERE p.tenant = $1 AND p.id = $2 AND p.document IS NOT NULL
    FOR SHARE
), replaced AS MATERIALIZED (
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.policy_id = $2 AND e.scope = $3 AND e.exact_key = $4
), nearest AS MATERIALIZED (
    -- A cell that is not split is its own leaf. Of one that was believed not to be, some are looked
    -- at: the next put there knows better.
    SELECT coalesce($23::bytea, (
        SELECT ranked.leaf FROM (
            SELECT l.leaf, l.centroid <=> $8::halfvec AS distance
            FROM leaves l
            WHERE l.tenant = $1 AND l.cell = $21::bytea AND l.closed_at IS NULL
            ORDER BY l.opened_at
            LIMIT 1000
        ) ranked
        ORDER BY ranked.distance
        LIMIT 1
    ), $21) AS leaf
), kept AS (
    INSERT INTO entries AS e (
        tenant, policy_id, scope, exact_key, space, partition, prompt_hash, embedding, dimensions,
        body, media_type, prompt_text, prompt_tokens, completion_tokens, model, tags, upstream_ms,
        generation, provenance, id, leaf, inflated_bytes, created_at,
        exact_expires_at, semantic_expires_at
    )
    SELECT
        $1, $2, $3, $4, $5, $6, $7, $8::halfvec, vector_dims($8), $9, $10, $11, $12, $13, $14, $15,
        $16, p.generation, $18, $20, (SELECT l.leaf FROM nearest l), $22::integer, now(), p.exact_expires_at,
        CASE WHEN $8 IS NOT NULL THEN p.semantic_expires_at END
    FROM policy p
    WHERE $17::bigint IS NULL OR $17 = p.generation
    ON CONFLICT (tenant, policy_id, scope, exact_key) WHERE exact_key IS NOT NULL
    DO UPDATE SET
        space = excluded.space, partition = excluded.partition,
        prompt_hash = excluded.prompt_hash, embedding = excluded.embedding,
        leaf = excluded.leaf, dimensions = excluded.dimensions, body = excluded.body,
        inflated_bytes = excluded.inflated_bytes, media_type = excluded.media_type,
        prompt_text = excluded.prompt_text, prompt_tokens = excluded.prompt_tokens,
        completion_tokens = excluded.completion_tokens, model = excluded.model,
        tags = excluded.tags, upstream_ms = excluded.upstream_ms, generation = excluded.generation,
        provenance = excluded.provenance, id = excluded.id, created_at = excluded.created_at,
        exact_expires_at = excluded.exact_expires_at,
        semantic_expires_at = excluded.semantic_expires_at, quarantined_at = NULL
    RETURNING
        e.id, greatest(e.exact_expires_at, e.semantic_expires_at) AS expires_at,
        e.xmax <> 0 AS updated, e.leaf
), unaliased AS (
    DELETE FROM aliases a USING kept k, replaced r WHERE a.tenant = $1 AND a.entry_id = r.id
), uncounted AS (
    DELETE FROM hit_counts h USING kept k, replaced r WHERE h.tenant = $1 AND h.entry_id = r.id
), aliased AS MATERIALIZED (
    -- Seldom there is one. The index is named by its order, as in find_exact.
    SELECT a.exact_key FROM aliases a
    WHERE a.tenant = $1 AND a.policy_id = $2 AND a.scope = $3
        AND a.exact_key >= $4 AND a.exact_key <= $4
    ORDER BY a.exact_key
    LIMIT 1
), superseded AS (
    DELETE FROM aliases a USING kept k
    WHERE a.tenant = $1 AND a.policy_id = $2 AND a.scope = $3 AND a.exact_key = $4
        AND EXISTS (SELECT FROM aliased)
    RETURNING a.entry_id
), told AS MATERIALIZED (
    -- Not of what is new: nobody has a copy of it, and a notification holds up every other commit.
    -- A twin that was put a moment ago is replaced unseen, and has no name here: all are told.
    SELECT pg_notify('cachesvc', CASE
        WHEN c.ids IS NULL THEN json_build_array($1::text, $2::text)
        ELSE json_build_array($1::text, $2::text, c.ids)
    END::text)
    FROM kept k CROSS JOIN (
        SELECT json_agg(u.id) AS ids
        FROM (SELECT r.id FROM replaced r UNION SELECT s.entry_id FROM superseded s) u
    ) c
    WHERE c.ids IS NOT NULL OR k.updated
)
SELECT
    p.generation AS current, k.id, k.expires_at, k.leaf, (SELECT count(*) FROM told) > 0 AS replaced
FROM policy p LEFT JOIN kept k ON true


-- put_by_prompt -- keep an answer that has no exact key: parameters as in put_by_exact_key, $4 is null
WITH policy AS MATERIALIZED (
    SELECT
        p.generation,
        now() + least(p.semantic_ttl_seconds, $19::integer) * interval '1 second'
            AS semantic_expires_at
    FROM policies p
    WHERE p.tenant = $1 AND p.id = $2 AND p.document IS NOT NULL
    FOR SHARE
), replaced AS MATERIALIZED (
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.policy_id = $2 AND e.scope = $3 AND e.space = $5
        AND e.dimensions = vector_dims($8::halfvec) AND e.partition = $6 AND e.prompt_hash = $7
        AND e.exact_key IS NULL
), nearest AS MATERIALIZED (
    -- A cell that is not split is its own leaf. Of one that was believed not to be, some are looked
    -- at: the next put there knows better.
    SELECT coalesce($23::bytea, (
        SELECT ranked.leaf FROM (
            SELECT l.leaf, l.centroid <=> $8::halfvec AS distance
            FROM leaves l
            WHERE l.tenant = $1 AND l.cell = $21::bytea AND l.closed_at IS NULL
            ORDER BY l.opened_at
            LIMIT 1000
        ) ranked
        ORDER BY ranked.distance
        LIMIT 1
    ), $21) AS leaf
), kept AS (
    INSERT INTO entries AS e (
        tenant, policy_id, scope, exact_key, space, partition, prompt_hash, embedding, dimensions,
        body, media_type, prompt_text, prompt_tokens, completion_tokens, model, tags, upstream_ms,
        generation, provenance, id, leaf, inflated_bytes, created_at,
        exact_expires_at, semantic_expires_at
    )
    SELECT
        $1, $2, $3, $4::bytea, $5, $6, $7, $8, vector_dims($8), $9, $10, $11, $12, $13, $14, $15,
        $16, p.generation, $18, $20, (SELECT l.leaf FROM nearest l), $22::integer, now(), NULL, p.semantic_expires_at
    FROM policy p
    WHERE $17::bigint IS NULL OR $17 = p.generation
    ON CONFLICT (tenant, policy_id, scope, space, dimensions, partition, prompt_hash)
        WHERE exact_key IS NULL
    DO UPDATE SET
        embedding = excluded.embedding, leaf = excluded.leaf, body = excluded.body,
        inflated_bytes = excluded.inflated_bytes, media_type = excluded.media_type,
        prompt_text = excluded.prompt_text, prompt_tokens = excluded.prompt_tokens,
        completion_tokens = excluded.completion_tokens, model = excluded.model,
        tags = excluded.tags, upstream_ms = excluded.upstream_ms, generation = excluded.generation,
        provenance = excluded.provenance, id = excluded.id, created_at = excluded.created_at,
        semantic_expires_at = excluded.semantic_expires_at, quarantined_at = NULL
    RETURNING e.id, e.semantic_expires_at AS expires_at, e.xmax <> 0 AS updated, e.leaf
), unaliased AS (
    DELETE FROM aliases a USING kept k, replaced r WHERE a.tenant = $1 AND a.entry_id = r.id
), uncounted AS (
    DELETE FROM hit_counts h USING kept k, replaced r WHERE h.tenant = $1 AND h.entry_id = r.id
), told AS MATERIALIZED (
    SELECT pg_notify('cachesvc', CASE
        WHEN c.ids IS NULL THEN json_build_array($1::text, $2::text)
        ELSE json_build_array($1::text, $2::text, c.ids)
    END::text)
    FROM kept k CROSS JOIN (SELECT json_agg(r.id) AS ids FROM replaced r) c
    WHERE c.ids IS NOT NULL OR k.updated
)
SELECT
    p.generation AS current, k.id, k.expires_at, k.leaf, (SELECT count(*) FROM told) > 0 AS replaced
FROM policy p LEFT JOIN kept k ON true


-- add_aliases -- let exact keys be answered by entries that live: $1 tenant, then arrays: $2 policies, $3 scopes, $4 exact keys, $5 entries, $6 similarities, $7 the policies' revisions that the hits were judged under, or nulls
WITH asked AS MATERIALIZED (
    SELECT *
    FROM unnest(
        $2::text[], $3::text[], $4::bytea[], $5::uuid[], $6::double precision[], $7::bigint[]
    ) n (policy_id, scope, exact_key, entry_id, similarity, revision)
), patience AS MATERIALIZED (
    -- Aliases can wait. Where this and another wait for each other it is this that gives up, and is
    -- tried again: the other's patience, and the server's, is a second.
    SELECT set_config('lock_timeout', '100', true)
), policy AS MATERIALIZED (
    SELECT p.*
    FROM patience CROSS JOIN policies p
    WHERE p.tenant = $1 AND p.id = ANY ($2::text[]) AND p.document IS NOT NULL
    ORDER BY p.id
    FOR SHARE OF p
)
INSERT INTO aliases AS a (
    tenant, policy_id, scope, exact_key, entry_id, similarity, created_at, expires_at
)
SELECT
    $1, n.policy_id, n.scope, n.exact_key, e.id, n.similarity, now(),
    least(now() + p.ttl_seconds * interval '1 second', e.semantic_expires_at)
FROM asked n
JOIN policy p ON p.id = n.policy_id AND (n.revision IS NULL OR n.revision = p.revision)
CROSS JOIN LATERAL (
    -- One by one, by the key. What is being removed is left out: it is not waited for.
    SELECT e.id, e.semantic_expires_at
    FROM entries e
    WHERE e.tenant = $1 AND e.id = n.entry_id
        AND e.policy_id = n.policy_id AND e.scope = n.scope
        AND e.semantic_expires_at > now()
        AND e.created_at > p.semantic_floor
        AND e.created_at > now() - p.semantic_ttl_seconds * interval '1 second'
        AND e.generation >= p.oldest_generation
        AND e.quarantined_at IS NULL
    LIMIT 1
    FOR KEY SHARE SKIP LOCKED
) e
WHERE NOT EXISTS (
    -- An answer put for this very key meanwhile is the better one. The index is named by its order,
    -- as in find_exact.
    SELECT FROM (
        SELECT o.exact_expires_at, o.generation
        FROM entries o
        WHERE o.tenant = $1 AND o.policy_id = n.policy_id AND o.scope = n.scope
            AND o.exact_key >= n.exact_key AND o.exact_key <= n.exact_key
        ORDER BY o.exact_key
        LIMIT 1
    ) o
    WHERE o.exact_expires_at > now() AND o.generation >= p.oldest_generation
)
-- In one order, so that two replicas seldom wait for each other in a circle.
ORDER BY n.policy_id, n.scope, n.exact_key
ON CONFLICT (tenant, policy_id, scope, exact_key)
DO UPDATE SET
    entry_id = excluded.entry_id, similarity = excluded.similarity,
    created_at = excluded.created_at, expires_at = excluded.expires_at


-- beat -- a notification of one's own: $1 channel, $2 what it says
-- It is not worth waiting for the disk, nor for a standby.
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)


-- own_session -- the process that serves a connection which listens, and whether its settings came
SELECT pg_backend_pid() AS pid, current_setting('synchronous_commit') = 'off' AS as_asked


-- written -- how far a primary has written its log, in bytes, and on which timeline
SELECT
    (pg_current_wal_lsn() - '0/0')::bigint AS position,
    ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer AS timeline


-- replayed -- how far a replica has replayed it; no position where it is none
SELECT
    CASE WHEN pg_is_in_recovery() THEN (pg_last_wal_replay_lsn() - '0/0')::bigint ELSE -1 END
        AS position,
    min_recovery_end_timeline AS timeline
FROM pg_control_recovery()


-- is_distributed -- whether statements run on other servers than this one, as with Citus
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')


-- array_types -- nothing: so that a driver learns of the types: $1 and $2 empty arrays
SELECT cardinality($1::bytea[]) + cardinality($2::interval[])


-- vector_schema -- where pgvector lives in this database; null when it is not there
SELECT n.nspname
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.oid = to_regtype('halfvec')


-- pgvector_version -- null when it is not installed in this database
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector')


-- revision_table -- whether this database was ever migrated
SELECT to_regclass('alembic_version') IS NOT NULL


-- revision -- the schema's revision
SELECT version_num FROM alembic_version


-- indexed_dimensions -- the numbers of dimensions that have a usable HNSW index
SELECT substring(c.relname FROM '[0-9]+$')::integer AS dimensions
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass('leaves') AND i.indisvalid
    AND c.relname ~ '^leaves_by_vector_[0-9]+$'
ORDER BY 1


-- take_your_time -- statements of this session may take as long as they take
SET statement_timeout = 0


-- lock_index -- true when no other process builds an index: $1 key
SELECT pg_try_advisory_lock($1)


-- index_valid -- null: there is none; false: its building was broken off
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('leaves_by_vector_{dimensions}')


-- drop_index -- what a broken-off building left
DROP INDEX CONCURRENTLY leaves_by_vector_{dimensions}


-- create_index -- index one number of dimensions while the table is in use
CREATE INDEX CONCURRENTLY leaves_by_vector_{dimensions} ON leaves
USING hnsw (((centroid || code)::halfvec({coded})) halfvec_cosine_ops)
WITH (m = 16, ef_construction = 200)
WHERE dimensions = {dimensions}


-- our_indexes -- each with what rebuilds it and what removes it; `leftover` is what a broken-off rebuilding left
SELECT
    c.relname AS name, i.indisvalid AS valid, pg_relation_size(c.oid) AS bytes,
    NOT i.indisvalid AND c.relname ~ '_cc(new|old)[0-9]*$' AS leftover,
    format('REINDEX INDEX CONCURRENTLY %I.%I', n.nspname, c.relname) AS rebuild,
    format('DROP INDEX CONCURRENTLY %I.%I', n.nspname, c.relname) AS remove
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid IN (
    to_regclass('entries'), to_regclass('leaves'), to_regclass('aliases'),
    to_regclass('hit_counts'), to_regclass('policies'), to_regclass('verdicts'),
    to_regclass('shadow_hits')
)
ORDER BY c.relname


-- index_progress -- how far another session's building of an index is: $1 its process id
SELECT
    g.phase,
    CASE WHEN g.tuples_total > 0 THEN g.tuples_done ELSE g.blocks_done END AS done,
    CASE WHEN g.tuples_total > 0 THEN g.tuples_total ELSE g.blocks_total END AS total
FROM pg_stat_progress_create_index g
WHERE g.pid = $1


-- vacuum -- room of dead rows is used again, and the planner knows what there is
VACUUM (ANALYZE) entries, leaves, aliases, hit_counts, policies, verdicts, shadow_hits


-- table_conditions -- rows, dead rows and sizes of the tables that grow
SELECT
    c.relname AS name,
    greatest(s.n_live_tup, c.reltuples)::bigint AS live,
    s.n_dead_tup AS dead,
    s.n_mod_since_analyze AS changed,
    greatest(s.last_analyze, s.last_autoanalyze) AS analyzed_at,
    pg_relation_size(c.oid) AS bytes,
    (
        -- Of the heap alone: what is kept out of line counts as the pointer to it.
        SELECT sum(w.avg_width * (1 - w.null_frac))
        FROM pg_stats w
        WHERE w.schemaname = n.nspname AND w.tablename = c.relname
    )::double precision AS row_bytes,
    current_setting('autovacuum')::boolean
        AND current_setting('track_counts')::boolean AS vacuumed_by_server,
    coalesce((
        SELECT o.option_value::boolean FROM pg_options_to_table(c.reloptions) o
        WHERE o.option_name = 'autovacuum_enabled'
    ), true) AS vacuumed_by_table
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.oid IN (
    to_regclass('entries'), to_regclass('leaves'), to_regclass('aliases'), to_regclass('hit_counts')
)
ORDER BY c.relname


-- index_conditions -- sizes of the indexes of the tables that grow, and whether they are in use
SELECT
    c.relname AS name, i.indisvalid AS valid, a.amname = 'hnsw' AS walked,
    greatest(c.reltuples, 0)::bigint AS rows, pg_relation_size(c.oid) AS bytes
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam
WHERE i.indrelid IN (
    to_regclass('entries'), to_regclass('leaves'), to_regclass('aliases'), to_regclass('hit_counts')
)
ORDER BY c.relname


-- dimensions_in_use -- of a sample of all vectors: $1 percent of the table's pages
SELECT DISTINCT e.dimensions
FROM entries e TABLESAMPLE SYSTEM ($1)
WHERE e.dimensions IS NOT NULL
ORDER BY 1


-- newer_pgvector -- the version that is installed on the server's disk, where it is not the one in use
SELECT x.default_version
FROM pg_available_extensions x
WHERE x.name = 'vector' AND x.default_version <> x.installed_version


-- policies -- the policies of a tenant: $1 tenant
SELECT id, document, revision, generation
FROM policies
WHERE tenant = $1 AND document IS NOT NULL
ORDER BY id


-- save_policy -- write a policy whole: $1 tenant, $2 id, $3 document, $4 TTL, $5 semantic TTL
WITH before AS MATERIALIZED (
    SELECT p.document IS NOT NULL AS existed
    FROM policies p
    WHERE p.tenant = $1 AND p.id = $2
    FOR UPDATE
), saved AS (
    INSERT INTO policies AS p (
        tenant, id, document, revision, generation, oldest_generation,
        ttl_seconds, semantic_ttl_seconds
    )
    SELECT
        $1, $2, $3::jsonb, extract(epoch FROM clock_timestamp()) * 1000000, 1, 1, $4, $5
    FROM (VALUES (1)) one LEFT JOIN before b ON true
    ON CONFLICT (tenant, id) DO UPDATE SET
        document = excluded.document,
        revision = greatest(p.revision + 1, extract(epoch FROM clock_timestamp()) * 1000000),
        ttl_seconds = excluded.ttl_seconds,
        semantic_ttl_seconds = excluded.semantic_ttl_seconds,
        -- What the old TTL has killed by now stays dead under a longer one.
        exact_floor = greatest(p.exact_floor, now() - p.ttl_seconds * interval '1 second'),
        semantic_floor = greatest(
            p.semantic_floor, now() - p.semantic_ttl_seconds * interval '1 second'
        ),
        -- Which messages are compared is another question now. Not now(): an alias that was left
        -- while this statement waited for its row is younger than that.
        alias_floor = CASE
            WHEN p.document->'window' = excluded.document->'window'
                AND p.document->'ignore_roles' = excluded.document->'ignore_roles'
                -- Policies of before these fields have none of them.
                AND coalesce(p.document->'extract', 'null') =
                    coalesce(excluded.document->'extract', 'null')
                AND coalesce(p.document->'embed', '""') =
                    coalesce(excluded.document->'embed', '""')
            THEN p.alias_floor
            ELSE clock_timestamp()
        END
    -- A new row has no floor yet, a written one has.
    RETURNING p.id, p.document, p.revision, p.generation, p.exact_floor > '-infinity' AS written
)
SELECT
    s.id, s.document, s.revision, s.generation, NOT coalesce(b.existed, s.written) AS created,
    pg_notify('cachesvc', json_build_array($1::text, s.id)::text)
FROM saved s LEFT JOIN before b ON true


-- create_policy_once -- unless there is or was one of that id: parameters as in save_policy
INSERT INTO policies (
    tenant, id, document, revision, generation, oldest_generation,
    ttl_seconds, semantic_ttl_seconds
)
VALUES ($1, $2, $3::jsonb, extract(epoch FROM clock_timestamp()) * 1000000, 1, 1, $4, $5)
ON CONFLICT (tenant, id) DO NOTHING
RETURNING id


-- delete_policy -- its generation lives on, so that nothing old answers when it is created again: $1 tenant, $2 id
UPDATE policies
SET document = NULL,
    revision = greatest(revision + 1, extract(epoch FROM clock_timestamp()) * 1000000),
    generation = generation + 1,
    oldest_generation = generation + 1, purged_at = now()
WHERE tenant = $1 AND id = $2 AND document IS NOT NULL
RETURNING id, pg_notify('cachesvc', json_build_array($1::text, id)::text)


-- raise_generation -- the first half of a purge: $1 tenant, $2 policy or null for all, $3 entry or null, $4 whether the whole policy goes
WITH affected AS MATERIALIZED (
    -- In the order of their ids, so that two purges never wait for each other in a circle.
    SELECT p.id, p.oldest_generation
    FROM policies p
    WHERE p.tenant = $1 AND p.document IS NOT NULL AND ($2::text IS NULL OR p.id = $2)
        AND ($3::uuid IS NULL OR EXISTS (
            SELECT FROM entries e
            WHERE e.tenant = $1 AND e.id = $3 AND e.policy_id = p.id
                AND e.generation >= p.oldest_generation
        ))
    ORDER BY p.id
    FOR UPDATE
)
UPDATE policies p
SET generation = p.generation + 1,
    revision = greatest(p.revision + 1, extract(epoch FROM clock_timestamp()) * 1000000),
    oldest_generation = CASE WHEN $4 THEN p.generation + 1 ELSE p.oldest_generation END,
    purged_at = CASE WHEN $4 THEN now() ELSE p.purged_at END
FROM affected a
WHERE p.tenant = $1 AND p.id = a.id
RETURNING a.oldest_generation, pg_notify('cachesvc', json_build_array($1::text, p.id)::text)


-- policy_exists -- whether a tenant has a policy: $1 tenant, $2 id
SELECT EXISTS (SELECT FROM policies WHERE tenant = $1 AND id = $2 AND document IS NOT NULL)


-- count_selected -- what a purge would remove: $1 tenant, $2 policy, $3 scope, $4 tags, $5 model, $6 age, $7 prompt hash, $8 entry; null selects everything
SELECT count(*)
FROM entries e JOIN policies p ON p.tenant = e.tenant AND p.id = e.policy_id
WHERE e.tenant = $1
    AND ($2::text IS NULL OR e.policy_id = $2)
    AND ($3::text IS NULL OR e.scope = $3)
    AND ($4::text[] IS NULL OR e.tags @> $4)
    AND ($5::text IS NULL OR e.model = $5)
    AND ($6::interval IS NULL OR e.created_at < now() - $6)
    AND ($7::bytea IS NULL OR e.prompt_hash = $7)
    AND ($8::uuid IS NULL OR e.id = $8)
    AND e.generation >= p.oldest_generation
    AND (
        least(e.exact_expires_at, e.created_at + p.ttl_seconds * interval '1 second') > now()
            AND e.exact_expires_at IS NOT NULL AND e.created_at > p.exact_floor
        OR least(
            e.semantic_expires_at, e.created_at + p.semantic_ttl_seconds * interval '1 second'
        ) > now() AND e.semantic_expires_at IS NOT NULL AND e.created_at > p.semantic_floor
    )


-- remove_selected -- the second half of a purge, a batch at a time: $1 to $8 as in count_selected, $9 the oldest generation that answered, $10 the last id seen, $11 how many
WITH chunk AS MATERIALIZED (
    SELECT e.id
    FROM entries e JOIN policies p ON p.tenant = e.tenant AND p.id = e.policy_id
    WHERE e.tenant = $1
        AND ($2::text IS NULL OR e.policy_id = $2)
        AND ($3::text IS NULL OR e.scope = $3)
        AND ($4::text[] IS NULL OR e.tags @> $4)
        AND ($5::text IS NULL OR e.model = $5)
        AND ($6::interval IS NULL OR e.created_at < now() - $6)
        AND ($7::bytea IS NULL OR e.prompt_hash = $7)
        AND ($8::uuid IS NULL OR e.id = $8)
        -- What was put after the purge began stays.
        AND e.generation < p.generation
        AND e.id > $10
    ORDER BY e.id
    LIMIT $11
), locked AS MATERIALIZED (
    SELECT
        e.id,
        e.generation >= coalesce($9::bigint, p.oldest_generation)
        AND (
            least(e.exact_expires_at, e.created_at + p.ttl_seconds * interval '1 second') > now()
                AND e.exact_expires_at IS NOT NULL AND e.created_at > p.exact_floor
            OR least(
                e.semantic_expires_at, e.created_at + p.semantic_ttl_seconds * interval '1 second'
            ) > now() AND e.semantic_expires_at IS NOT NULL AND e.created_at > p.semantic_floor
        ) AS lived
    FROM entries e
    JOIN chunk c ON c.id = e.id
    JOIN policies p ON p.tenant = e.tenant AND p.id = e.policy_id
    WHERE e.tenant = $1
    -- Entries before aliases, and in one order: so does every writer, and none waits in a circle.
    ORDER BY e.id
    FOR UPDATE OF e
), gone AS (
    DELETE FROM entries e USING locked l WHERE e.tenant = $1 AND e.id = l.id
    RETURNING l.lived, e.policy_id
), told AS MATERIALIZED (
    SELECT pg_notify('cachesvc', json_build_array($1::text, g.policy_id)::text)
    FROM (SELECT DISTINCT gone.policy_id FROM gone) g
), unaliased AS (
    DELETE FROM aliases a USING locked l WHERE a.tenant = $1 AND a.entry_id = l.id
), uncounted AS (
    DELETE FROM hit_counts h USING locked l WHERE h.tenant = $1 AND h.entry_id = l.id
), unshadowed AS (
    DELETE FROM shadow_hits s USING locked l WHERE s.tenant = $1 AND s.entry_id = l.id
)
SELECT
    (SELECT c.id FROM chunk c ORDER BY c.id DESC LIMIT 1) AS last,
    (SELECT count(*) FROM gone) AS removed,
    (SELECT count(*) FROM gone g WHERE g.lived) AS lived,
    (SELECT count(*) FROM told) AS told


-- entry -- one entry, whole: $1 tenant, $2 id
SELECT
    e.*, coalesce(e.inflated_bytes, octet_length(e.body)) AS body_bytes, x.exact_until, x.semantic_until,
    CASE
        WHEN e.quarantined_at IS NOT NULL THEN 'quarantined'
        WHEN x.exact_until > now() AND e.created_at > p.exact_floor
            OR x.semantic_until > now() AND e.created_at > p.semantic_floor THEN 'live'
        ELSE 'expired'
    END AS state,
    (SELECT count(*) FROM aliases a WHERE a.tenant = $1 AND a.entry_id = e.id) AS aliases,
    coalesce(h.hits, 0) AS hits, h.last_hit_at
FROM entries e JOIN policies p ON p.tenant = e.tenant AND p.id = e.policy_id
LEFT JOIN hit_counts h ON h.tenant = $1 AND h.entry_id = e.id
CROSS JOIN LATERAL (
    -- Null where it is not on that tier: least() alone would pass over that.
    SELECT
        CASE WHEN e.exact_expires_at IS NOT NULL THEN least(
            e.exact_expires_at, e.created_at + p.ttl_seconds * interval '1 second'
        ) END AS exact_until,
        CASE WHEN e.semantic_expires_at IS NOT NULL THEN least(
            e.semantic_expires_at, e.created_at + p.semantic_ttl_seconds * interval '1 second'
        ) END AS semantic_until
) x
WHERE e.tenant = $1 AND e.id = $2 AND e.generation >= p.oldest_generation


-- list_entries -- a page of entries, newest first, without bodies: $1 tenant, $2 policy, $3 scope, $4 tags, $5 model, $6 age, $7 tier, $8 pattern of the prompt, $9 state, $10 and $11 when the last one seen was made and its id, $12 how many; null selects everything
SELECT
    e.*,
    (SELECT count(*) FROM aliases a WHERE a.tenant = $1 AND a.entry_id = e.id) AS aliases,
    coalesce(h.hits, 0) AS hits, h.last_hit_at
FROM policies p
CROSS JOIN LATERAL (
    -- Policy by policy, so that each is read along its own index, and no further than a page.
    SELECT
        e.tenant, e.id, e.policy_id, e.scope, e.space, e.dimensions, e.exact_key, e.partition,
        e.prompt_text, e.prompt_tokens, e.completion_tokens, e.model, e.tags, e.upstream_ms,
        e.generation, e.provenance, e.created_at, e.media_type,
        coalesce(e.inflated_bytes, octet_length(e.body)) AS body_bytes, x.exact_until, x.semantic_until, y.state
    FROM entries e
    CROSS JOIN LATERAL (
        SELECT
            CASE WHEN e.exact_expires_at IS NOT NULL THEN least(
                e.exact_expires_at, e.created_at + p.ttl_seconds * interval '1 second'
            ) END AS exact_until,
            CASE WHEN e.semantic_expires_at IS NOT NULL THEN least(
                e.semantic_expires_at, e.created_at + p.semantic_ttl_seconds * interval '1 second'
            ) END AS semantic_until
    ) x
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN e.quarantined_at IS NOT NULL THEN 'quarantined'
            WHEN x.exact_until > now() AND e.created_at > p.exact_floor
                OR x.semantic_until > now() AND e.created_at > p.semantic_floor THEN 'live'
            ELSE 'expired'
        END AS state
    ) y
    WHERE e.tenant = $1 AND e.policy_id = p.id
        AND e.generation >= p.oldest_generation
        AND ($3::text IS NULL OR e.scope = $3)
        AND ($4::text[] IS NULL OR e.tags @> $4)
        AND ($5::text IS NULL OR e.model = $5)
        AND ($6::interval IS NULL OR e.created_at < now() - $6)
        AND ($7::text IS NULL OR CASE $7
            WHEN 'exact' THEN e.exact_key IS NOT NULL ELSE e.dimensions IS NOT NULL
        END)
        AND ($9::text IS NULL OR y.state = $9)
        -- Text cannot hold U+0000, prompts can: it is left out before they are read as text.
        AND ($8::text IS NULL OR convert_from(decode(regexp_replace(
            encode(e.prompt_text, 'escape'), '(\\\\)|\\000', '\1', 'g'
        ), 'escape'), 'UTF8') ~ $8)
        AND (e.created_at, e.id) < ($10::timestamptz, $11::uuid)
    ORDER BY e.created_at DESC, e.id DESC
    LIMIT $12
) e
LEFT JOIN hit_counts h ON h.tenant = $1 AND h.entry_id = e.id
WHERE p.tenant = $1 AND p.document IS NOT NULL AND ($2::text IS NULL OR p.id = $2)
ORDER BY e.created_at DESC, e.id DESC
LIMIT $12


-- counts -- what each policy of a tenant holds: $1 tenant
SELECT
    p.id, p.generation, e.entries, a.aliases, s.shadow_hits, e.body_bytes, e.oldest_created_at
FROM policies p
CROSS JOIN LATERAL (
    SELECT
        count(*) AS entries, coalesce(sum(coalesce(e.inflated_bytes, octet_length(e.body))), 0)::bigint
            AS body_bytes,
        min(e.created_at) AS oldest_created_at
    FROM entries e
    WHERE e.tenant = $1 AND e.policy_id = p.id AND e.generation >= p.oldest_generation
) e
CROSS JOIN LATERAL (
    SELECT count(*) AS aliases FROM aliases a WHERE a.tenant = $1 AND a.policy_id = p.id
) a
CROSS JOIN LATERAL (
    SELECT count(*) AS shadow_hits
    FROM shadow_hits s
    WHERE s.tenant = $1 AND s.policy_id = p.id AND s.created_at > p.purged_at
) s
WHERE p.tenant = $1 AND p.document IS NOT NULL
ORDER BY p.id


-- every_policy -- where dead rows may be, policies that were deleted included
SELECT tenant, id FROM policies ORDER BY tenant, id


-- policies_with_dead -- where something can never answer again, policies that were deleted included: $1 how many
SELECT p.tenant, p.id
FROM policies p
WHERE EXISTS (
        SELECT FROM entries e
        WHERE e.tenant = p.tenant AND e.policy_id = p.id
            AND greatest(e.exact_expires_at, e.semantic_expires_at) <= now()
    )
    OR EXISTS (
        SELECT FROM entries e
        WHERE e.tenant = p.tenant AND e.policy_id = p.id AND e.created_at <= least(
            greatest(p.exact_floor, now() - p.ttl_seconds * interval '1 second'),
            greatest(p.semantic_floor, now() - p.semantic_ttl_seconds * interval '1 second')
        )
    )
    OR EXISTS (
        SELECT FROM entries e
        WHERE e.tenant = p.tenant AND e.policy_id = p.id
            AND e.created_at <= p.purged_at + interval '1 minute'
            AND e.generation < p.oldest_generation
    )
    OR EXISTS (
        SELECT FROM aliases a
        WHERE a.tenant = p.tenant AND a.policy_id = p.id AND a.expires_at <= now()
    )
ORDER BY p.tenant, p.id
LIMIT $1


-- every_tenant -- whose entries there may be
SELECT DISTINCT tenant FROM policies ORDER BY tenant


-- remove_dead -- entries of one policy that can never answer again: $1 tenant, $2 policy, $3 how many
WITH policy AS MATERIALIZED (
    SELECT
        p.oldest_generation,
        least(
            greatest(p.exact_floor, now() - p.ttl_seconds * interval '1 second'),
            greatest(p.semantic_floor, now() - p.semantic_ttl_seconds * interval '1 second')
        ) AS dead_before,
        -- A put that was under way when the purge began may be a little younger than it.
        p.purged_at + interval '1 minute' AS purged_before
    FROM policies p
    WHERE p.tenant = $1 AND p.id = $2
), doomed AS MATERIALIZED (
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.policy_id = $2
        AND greatest(e.exact_expires_at, e.semantic_expires_at) <= now()
    UNION ALL
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.policy_id = $2 AND e.created_at <= (SELECT dead_before FROM policy)
    UNION ALL
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.policy_id = $2 AND e.created_at <= (SELECT purged_before FROM policy)
        AND e.generation < (SELECT oldest_generation FROM policy)
    LIMIT $3
), locked AS MATERIALIZED (
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.id IN (SELECT d.id FROM doomed d)
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM entries e USING locked l WHERE e.tenant = $1 AND e.id = l.id RETURNING 1
), unaliased AS (
    DELETE FROM aliases a USING locked l WHERE a.tenant = $1 AND a.entry_id = l.id
), uncounted AS (
    DELETE FROM hit_counts h USING locked l WHERE h.tenant = $1 AND h.entry_id = l.id
)
SELECT count(*) FROM gone


-- remove_dead_aliases -- aliases of one policy that can never answer again: $1 tenant, $2 policy, $3 how many
WITH doomed AS MATERIALIZED (
    SELECT a.scope, a.exact_key
    FROM aliases a
    WHERE a.tenant = $1 AND a.policy_id = $2 AND a.expires_at <= now()
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM aliases a USING doomed d
    WHERE a.tenant = $1 AND a.policy_id = $2 AND a.scope = d.scope AND a.exact_key = d.exact_key
    RETURNING 1
)
SELECT count(*) FROM gone


-- limited_policies -- which policies have limits of their own
SELECT
    tenant, id, (document->>'max_entries')::bigint AS max_entries,
    (document->>'max_bytes')::bigint AS max_bytes
FROM policies
WHERE document->'max_entries' > '0' OR document->'max_bytes' > '0'
ORDER BY tenant, id


-- used -- what a policy holds, or a whole tenant, dead rows included: $1 tenant, $2 policy or null
SELECT count(*) AS entries, coalesce(sum(e.bytes), 0)::bigint AS bytes
FROM entries e
WHERE e.tenant = $1 AND ($2::text IS NULL OR e.policy_id = $2)


-- least_valued -- what has to go so that the rest fits with a twentieth to spare: $1 tenant, $2 policy or null, $3 entries that fit or null, $4 bytes that fit or null, $5 how many at most, $6 the id from which so many, $7, are looked at, or null and null for all
WITH live AS MATERIALIZED (
    SELECT
        e.id, e.created_at, e.bytes,
        -- The logarithm of (1 + hits) * tokens / bytes, halved with every quarter of its lifetime
        -- that it was not asked for. A short answer takes a kilobyte, too, with its indexes.
        ln(1 + coalesce(h.hits, 0)) + ln(greatest(1, e.prompt_tokens + e.completion_tokens))
            - ln(greatest(1024, e.bytes))
            - ln(2) * 4 / greatest(p.ttl_seconds, p.semantic_ttl_seconds)
                * extract(epoch FROM now() - greatest(e.created_at, h.last_hit_at)) AS value
    FROM (
        SELECT e.*
        FROM entries e
        WHERE e.tenant = $1 AND ($2::text IS NULL OR e.policy_id = $2)
            AND ($6::uuid IS NULL OR e.id >= $6)
        -- Ids are random, so a stretch of them is a fair sample. Of all, the order is nobody's.
        ORDER BY CASE WHEN $6 IS NOT NULL THEN e.id END
        LIMIT $7::bigint
    ) e
    JOIN policies p ON p.tenant = $1 AND p.id = e.policy_id
    LEFT JOIN hit_counts h ON h.tenant = $1 AND h.entry_id = e.id
    -- Only what lives: what is dead takes no place, and is removed anyway.
    WHERE e.quarantined_at IS NULL AND e.generation >= p.oldest_generation
        AND (
            least(e.exact_expires_at, e.created_at + p.ttl_seconds * interval '1 second') > now()
                AND e.exact_expires_at IS NOT NULL AND e.created_at > p.exact_floor
            OR least(
                e.semantic_expires_at, e.created_at + p.semantic_ttl_seconds * interval '1 second'
            ) > now() AND e.semantic_expires_at IS NOT NULL AND e.created_at > p.semantic_floor
        )
), size AS (
    SELECT count(*) AS entries, sum(l.bytes) AS bytes FROM live l
), ranked AS (
    SELECT
        l.id, row_number() OVER best AS place, sum(l.bytes) OVER best AS bytes
    FROM live l
    WINDOW best AS (ORDER BY l.value DESC, l.created_at DESC, l.id DESC)
)
SELECT r.id
FROM ranked r CROSS JOIN size s
WHERE s.entries > $3::bigint AND r.place > $3 - $3 / 20
    OR s.bytes > $4::bigint AND r.bytes > $4 - $4 / 20
ORDER BY r.place DESC
LIMIT $5


-- evict -- remove these entries: $1 tenant, $2 ids
WITH locked AS MATERIALIZED (
    SELECT e.id FROM entries e
    WHERE e.tenant = $1 AND e.id = ANY ($2::uuid[])
    ORDER BY e.id
    FOR UPDATE SKIP LOCKED
), gone AS (
    -- An array, so that few of a large table are never sought by reading all of it.
    DELETE FROM entries e
    WHERE e.tenant = $1 AND e.id = ANY (ARRAY(SELECT l.id FROM locked l))
    RETURNING 1
), unaliased AS (
    DELETE FROM aliases a
    WHERE a.tenant = $1 AND a.entry_id = ANY (ARRAY(SELECT l.id FROM locked l))
), uncounted AS (
    DELETE FROM hit_counts h
    WHERE h.tenant = $1 AND h.entry_id = ANY (ARRAY(SELECT l.id FROM locked l))
)
SELECT count(*) FROM gone


-- count_hits -- add to what is counted of entries that are still there: $1 tenant, then arrays: $2 entries, $3 hits, $4 tokens saved
INSERT INTO hit_counts AS h (tenant, entry_id, policy_id, hits, tokens_saved, last_hit_at)
SELECT $1, n.entry_id, e.policy_id, n.hits, n.tokens, now()
FROM unnest($2::uuid[], $3::bigint[], $4::bigint[]) n (entry_id, hits, tokens)
CROSS JOIN LATERAL (
    -- One by one, by the key: a join would read all of a tenant's, for they come in this order.
    SELECT e.policy_id FROM entries e
    WHERE e.tenant = $1 AND e.id = n.entry_id
    LIMIT 1
) e
-- In one order, so that two replicas never wait for each other in a circle.
ORDER BY n.entry_id
ON CONFLICT (tenant, entry_id) DO UPDATE SET
    hits = h.hits + excluded.hits, tokens_saved = h.tokens_saved + excluded.tokens_saved,
    last_hit_at = greatest(h.last_hit_at, excluded.last_hit_at)


-- trim_hit_counts -- counts whose entry went while its hits were being counted: $1 tenant, $2 policy, $3 how many
WITH doomed AS MATERIALIZED (
    SELECT h.entry_id FROM hit_counts h
    WHERE h.tenant = $1 AND h.policy_id = $2 AND h.last_hit_at < now() - interval '1 hour'
        AND NOT EXISTS (SELECT FROM entries e WHERE e.tenant = $1 AND e.id = h.entry_id)
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM hit_counts h
    WHERE h.tenant = $1 AND h.entry_id = ANY (ARRAY(SELECT d.entry_id FROM doomed d))
    RETURNING 1
)
SELECT count(*) FROM gone


-- give_verdict -- judge an entry: $1 tenant, $2 entry, $3 scope or null for any, $4 verdict, $5 source, $6 prompt or null, $7 vector or null, $8 note, $9 id of the record, $10 whether "right" ends a quarantine
WITH judged AS MATERIALIZED (
    SELECT e.id, e.policy_id, e.scope, e.quarantined_at
    FROM entries e JOIN policies p ON p.tenant = e.tenant AND p.id = e.policy_id
    WHERE e.tenant = $1 AND e.id = $2 AND ($3::text IS NULL OR e.scope = $3)
        AND e.generation >= p.oldest_generation AND p.document IS NOT NULL
    FOR UPDATE OF e
), quarantined AS (
    UPDATE entries e SET quarantined_at = now()
    FROM judged j
    WHERE e.tenant = $1 AND e.id = j.id AND $4::text = 'wrong' AND j.quarantined_at IS NULL
), unaliased AS (
    DELETE FROM aliases a USING judged j
    WHERE a.tenant = $1 AND a.entry_id = j.id AND $4 = 'wrong'
), freed AS (
    UPDATE entries e SET quarantined_at = NULL
    FROM judged j
    WHERE e.tenant = $1 AND e.id = j.id AND $4 = 'right' AND $10::boolean
        AND j.quarantined_at IS NOT NULL
), recorded AS (
    INSERT INTO verdicts (
        tenant, id, entry_id, policy_id, scope, verdict, source, prompt_text, embedding, note,
        created_at
    )
    SELECT $1, $9::uuid, j.id, j.policy_id, j.scope, $4, $5, $6::bytea, $7::halfvec, $8, now()
    FROM judged j
    WHERE NOT EXISTS (
        -- Sent again by somebody who saw no reply: one judgement.
        SELECT FROM verdicts v
        WHERE v.tenant = $1 AND v.entry_id = j.id AND v.verdict = $4 AND v.source = $5
            AND v.prompt_text IS NOT DISTINCT FROM $6 AND v.note = $8
            AND v.created_at > now() - interval '1 minute'
    )
), gone AS MATERIALIZED (
    -- Its row may have been evicted, and somebody may still have a copy.
    SELECT pg_notify('cachesvc', json_build_array($1::text, '', json_build_array($2::uuid))::text)
    WHERE $4 = 'wrong' AND NOT EXISTS (SELECT FROM judged)
)
SELECT
    j.policy_id,
    $4 = 'wrong' OR j.quarantined_at IS NOT NULL AND NOT $10 AS quarantined,
    CASE
        WHEN $4 = 'wrong' THEN pg_notify(
            'cachesvc', json_build_array($1::text, j.policy_id, json_build_array(j.id))::text
        )
        -- It may be the better answer to whatever was answered without it.
        WHEN $10 AND j.quarantined_at IS NOT NULL THEN pg_notify(
            'cachesvc', json_build_array($1::text, j.policy_id)::text
        )
    END
FROM (SELECT count(*) FROM gone) told LEFT JOIN judged j ON true


-- keep_shadow_hits -- what policies in shadow would have served: $1 tenant, then arrays: $2 ids, $3 policies, $4 scopes, $5 exact keys, $6 entries, $7 tiers, $8 similarities, $9 prompts, $10 when
INSERT INTO shadow_hits (
    tenant, id, policy_id, scope, exact_key, entry_id, tier, similarity, prompt_text, created_at
)
SELECT
    $1, h.id, h.policy_id, h.scope, h.exact_key, h.entry_id, h.tier, h.similarity, h.prompt_text,
    h.created_at
FROM unnest(
    $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::uuid[], $7::text[],
    $8::double precision[], $9::bytea[], $10::timestamptz[]
) h (
    id, policy_id, scope, exact_key, entry_id, tier, similarity, prompt_text, created_at
)
-- A purge of the policy, or its deletion, may have come between the lookup and this.
JOIN policies p ON p.tenant = $1 AND p.id = h.policy_id AND p.document IS NOT NULL
    AND h.created_at > p.purged_at


-- remove_shadow_hits -- what a purge selects of them: $1 tenant, $2 policy, $3 scope, $4 age, $5 prompt hash, $6 entry, $7 how many; null selects everything
WITH doomed AS MATERIALIZED (
    SELECT s.id FROM shadow_hits s
    WHERE s.tenant = $1
        AND ($2::text IS NULL OR s.policy_id = $2)
        AND ($3::text IS NULL OR s.scope = $3)
        AND ($4::interval IS NULL OR s.created_at < now() - $4)
        AND ($5::bytea IS NULL OR sha256(s.prompt_text) = $5)
        AND ($6::uuid IS NULL OR s.entry_id = $6)
    LIMIT $7
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM shadow_hits s
    WHERE s.tenant = $1 AND s.id = ANY (ARRAY(SELECT d.id FROM doomed d))
    RETURNING 1
)
SELECT count(*) FROM gone


-- trim_shadow_hits -- beyond what is kept of one policy: $1 tenant, $2 policy, $3 how many are kept, $4 how long, $5 how many go at once
WITH doomed AS MATERIALIZED (
    SELECT s.id FROM shadow_hits s
    JOIN policies p ON p.tenant = s.tenant AND p.id = s.policy_id
    WHERE s.tenant = $1 AND s.policy_id = $2
        AND (
            p.document IS NULL
            OR s.created_at <= greatest(p.purged_at, now() - $4::interval)
            OR (s.created_at, s.id) <= (
                SELECT o.created_at, o.id FROM shadow_hits o
                WHERE o.tenant = $1 AND o.policy_id = $2
                ORDER BY o.created_at DESC, o.id DESC
                OFFSET $3::bigint LIMIT 1
            )
        )
    ORDER BY s.created_at, s.id
    LIMIT $5
    FOR UPDATE OF s SKIP LOCKED
), gone AS (
    DELETE FROM shadow_hits s
    WHERE s.tenant = $1 AND s.id = ANY (ARRAY(SELECT d.id FROM doomed d))
    RETURNING 1
)
SELECT count(*) FROM gone


-- trim_verdicts -- parameters as in trim_shadow_hits; a purge takes none of them, a deletion all
WITH doomed AS MATERIALIZED (
    SELECT v.id FROM verdicts v
    JOIN policies p ON p.tenant = v.tenant AND p.id = v.policy_id
    WHERE v.tenant = $1 AND v.policy_id = $2
        AND (
            p.document IS NULL
            OR v.created_at <= now() - $4::interval
            OR (v.created_at, v.id) <= (
                SELECT o.created_at, o.id FROM verdicts o
                WHERE o.tenant = $1 AND o.policy_id = $2
                ORDER BY o.created_at DESC, o.id DESC
                OFFSET $3::bigint LIMIT 1
            )
        )
    ORDER BY v.created_at, v.id
    LIMIT $5
    FOR UPDATE OF v SKIP LOCKED
), gone AS (
    DELETE FROM verdicts v
    WHERE v.tenant = $1 AND v.id = ANY (ARRAY(SELECT d.id FROM doomed d))
    RETURNING 1
)
SELECT count(*) FROM gone


-- be_patient -- statements of this transaction may take a minute, and are planned by what they select
SET LOCAL statement_timeout = '60s';
SET LOCAL plan_cache_mode = force_custom_plan;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_sort = on;
SET LOCAL enable_hashjoin = on;
SET LOCAL enable_mergejoin = on
