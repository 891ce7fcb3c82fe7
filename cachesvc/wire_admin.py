"""The HTTP contract's other half: what an operator asks. Read and checked as in `wire`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from cachesvc.errors import BadRequest, Invalid
from cachesvc.wire import Label, PolicyId, check_label, check_policy_id, check_tags, doc, within

STATES = ("live", "expired", "quarantined")
TIERS = ("exact", "semantic")
MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_SOUGHT_CHARS = 1000  # of a prompt that is searched for
_MAX_AGE_SECONDS = 10**10


class PurgeRequest(msgspec.Struct, kw_only=True):
    """`POST /cache/purge`: selectors and-ed, at least one; no tags are no selector."""

    policy_id: PolicyId | None = None
    scope: Label | None = None
    tags: list[str] | None = None
    model: Label | None = None
    older_than_seconds: Annotated[float, doc(minimum=0)] | None = None
    prompt_text: str | None = None
    entry_id: str | None = None
    dry_run: bool | None = None


class PurgeReply(msgspec.Struct, kw_only=True):
    """`matched` live entries; `purged` of them are gone."""

    matched: int
    purged: int
    dry_run: bool


class EntryFilter(msgspec.Struct, kw_only=True):
    """The query of `GET /cache/entries`: and-ed; `cursor` is the `next_cursor` of a page before.

    `tag` may be given several times: entries with all of them. `prompt` is part of a prompt, in
    any case.
    """

    policy_id: PolicyId | None = None
    scope: Label | None = None
    model: Label | None = None
    tag: list[str] = msgspec.field(default_factory=list)
    tier: Annotated[str, doc(enum=list(TIERS))] | None = None
    prompt: Annotated[str, doc(maxLength=MAX_SOUGHT_CHARS)] | None = None
    state: Annotated[str, doc(enum=list(STATES))] | None = None
    older_than_seconds: Annotated[float, doc(minimum=0)] | None = None
    limit: Annotated[int, doc(minimum=1, maximum=MAX_PAGE)] = DEFAULT_PAGE
    cursor: str | None = None


class EntrySummary(msgspec.Struct, kw_only=True):
    """An entry and where it came from, without its answer.

    `state` is `live` while the entry may answer on a tier, else `quarantined` or `expired`.
    """

    entry_id: str
    policy_id: str
    scope: str
    space: str
    dimensions: int | None
    exact_key: str | None
    partition: str | None
    prompt_text: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    tags: list[str]
    upstream_ms: float | None
    generation: int
    provenance: str
    created_at: str
    exact_expires_at: str | None
    semantic_expires_at: str | None
    aliases: int
    state: str
    body_bytes: int
    hits: int
    last_hit_at: str | None
    media_type: str | UnsetType = UNSET


class EntryList(msgspec.Struct, kw_only=True):
    """`GET /cache/entries`: a page, newest first; `next_cursor` is null on the last one."""

    entries: list[EntrySummary]
    next_cursor: str | None


class EntryReply(EntrySummary, kw_only=True):
    """`GET /cache/entries/{id}`: the same with the answer, as `response` or as `body`."""

    response: msgspec.Raw | UnsetType = UNSET
    body: bytes | UnsetType = UNSET


class PolicyStats(msgspec.Struct, kw_only=True):
    """What one policy holds now, and what this replica did with it since it started."""

    policy_id: str
    entries: int
    aliases: int
    shadow_hits: int
    body_bytes: int
    oldest_created_at: str | None
    generation: int
    hits: int
    misses: int
    puts: int
    prompt_tokens_saved: int
    completion_tokens_saved: int
    upstream_seconds_saved: float


class StatsReply(msgspec.Struct, kw_only=True):
    """`GET /stats`."""

    tenant: str
    policies: list[PolicyStats]


def check_purge(request: PurgeRequest) -> None:
    """Raises BadRequest when no selector is given and Invalid for what is out of bounds."""
    selectors = (
        "policy_id",
        "scope",
        "tags",
        "model",
        "older_than_seconds",
        "prompt_text",
        "entry_id",
    )
    # Every entry has all of no tags: an empty list selects nothing, or it would select everything.
    if all(getattr(request, name) in (None, []) for name in selectors):
        raise BadRequest(f"purge: at least one of {', '.join(selectors)} is required")
    if request.policy_id is not None:
        check_policy_id(request.policy_id)
    check_label("scope", request.scope)
    check_label("model", request.model)
    within("older_than_seconds", request.older_than_seconds or 0, 0, _MAX_AGE_SECONDS)
    check_tags(request.tags)


def check_filter(query: EntryFilter) -> None:
    """Raises Invalid for what is out of bounds. The cursor is read where it is used."""
    if query.policy_id is not None:
        check_policy_id(query.policy_id)
    check_label("scope", query.scope)
    check_label("model", query.model)
    check_tags(query.tag, "tag")
    _one_of("tier", query.tier, TIERS)
    _one_of("state", query.state, STATES)
    within("older_than_seconds", query.older_than_seconds or 0, 0, _MAX_AGE_SECONDS)
    within("limit", query.limit, 1, MAX_PAGE)
    prompt = query.prompt or ""
    within("prompt", len(prompt), 0, MAX_SOUGHT_CHARS, "characters")
    if "\x00" in prompt:
        raise Invalid("prompt: must not contain U+0000")


def _one_of(field: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise Invalid(f"{field}: must be one of {', '.join(allowed)}")
