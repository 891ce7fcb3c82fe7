"""The HTTP contract: one set of types, in JSON and in MessagePack.

Types say what may be *read* (a wrong type is 400); the `check_*` functions say which values are
*right* (a wrong value is 422). Optional `null` is the same as absent; unknown fields are ignored.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from math import inf
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cachesvc.core.policy import ID_PATTERN, Policy
from cachesvc.errors import BadRequest, Invalid

MAX_LABEL_CHARS = 256  # scope, space, model
MAX_TOKENS = 2**32 - 1
MAX_NOTE_CHARS = 2000
VERDICTS = ("right", "wrong")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_KEY_PATTERN = re.compile(r"[0-9A-Fa-f]{64}")


def doc(**schema: object) -> Meta:
    """Bounds for the OpenAPI document only: decoding must not turn a 422 into a 400."""
    return Meta(extra_json_schema=schema)


PolicyId = Annotated[str, doc(pattern=f"^{ID_PATTERN.pattern}$")]
Key = Annotated[str, doc(pattern=f"^{_KEY_PATTERN.pattern}$")]
Label = Annotated[str, doc(maxLength=MAX_LABEL_CHARS)]
Embedding = Annotated[
    list[float] | bytes,
    doc(description="numbers, or little-endian float32 bytes (base64 in JSON, bin in MessagePack)"),
]


class LookupRequest(msgspec.Struct, kw_only=True):
    """`POST /cache/lookup`. Needs `embedding` or `exact_key`."""

    policy_id: PolicyId
    embedding: Embedding | None = None
    exact_key: Key | None = None
    partition: Key | None = None
    after_exact: bool | None = None
    scope: Label | None = None
    space: Label | None = None
    threshold: Annotated[float, doc(minimum=0, maximum=1)] | None = None
    prompt_text: str | None = None
    top_k: Annotated[int, doc(minimum=1, maximum=32)] | None = None
    max_age_seconds: Annotated[float, doc(minimum=0)] | None = None
    # The caller asks again what it asked a moment ago: not counted as another lookup.
    retry: bool | None = None


class LookupReply(msgspec.Struct, kw_only=True):
    """Always 200. On a hit exactly one of `response`, or `body` with `media_type`."""

    hit: bool
    tier: str | None
    reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    similarity: float = 0.0
    generation: int = 0
    entry_id: str | UnsetType = UNSET
    age_seconds: int | UnsetType = UNSET
    expires_at: str | UnsetType = UNSET
    upstream_ms: float | UnsetType = UNSET
    response: msgspec.Raw | UnsetType = UNSET
    body: bytes | UnsetType = UNSET
    media_type: str | UnsetType = UNSET


class PutRequest(msgspec.Struct, kw_only=True):
    """`POST /cache/put`. Exactly one of `response` and `body`; `embedding` or `exact_key`."""

    policy_id: PolicyId
    response: msgspec.Raw | UnsetType = UNSET
    body: bytes | None = None
    media_type: Label | None = None
    embedding: Embedding | None = None
    exact_key: Key | None = None
    partition: Key | None = None
    scope: Label | None = None
    space: Label | None = None
    prompt_text: str | None = None
    prompt_tokens: Annotated[int, doc(minimum=0, maximum=MAX_TOKENS)] | None = None
    completion_tokens: Annotated[int, doc(minimum=0, maximum=MAX_TOKENS)] | None = None
    ttl_seconds: Annotated[int, doc(minimum=1)] | None = None
    generation: Annotated[int, doc(minimum=0)] | None = None
    tags: Annotated[list[str], doc(maxItems=16)] | None = None
    model: Label | None = None
    upstream_ms: Annotated[float, doc(minimum=0)] | None = None


class PutReply(msgspec.Struct, kw_only=True):
    """`stored: false` with a reason is a 200 too."""

    entry_id: str | None
    expires_at: str | None
    stored: bool
    reason: str


class FeedbackRequest(msgspec.Struct, kw_only=True):
    """`POST /cache/feedback`: a judgement of the answer that `entry_id` is.

    `prompt_text` and `embedding` are of the prompt that it was served for.
    """

    entry_id: str
    verdict: Annotated[str, doc(enum=list(VERDICTS))]
    scope: Label | None = None
    prompt_text: str | None = None
    embedding: Embedding | None = None
    note: Annotated[str, doc(maxLength=MAX_NOTE_CHARS)] | None = None


class FeedbackReply(msgspec.Struct, kw_only=True):
    """`quarantined`: the entry answers nobody until an answer is put in its place."""

    entry_id: str
    verdict: str
    quarantined: bool


class PolicyList(msgspec.Struct, kw_only=True):
    """`GET /policies`."""

    policies: list[Policy]


class ErrorDetail(msgspec.Struct, kw_only=True):
    code: str
    message: str


class ErrorReply(msgspec.Struct, kw_only=True):
    """Every non-2xx reply."""

    error: ErrorDetail


def rfc3339(moment: datetime) -> str:
    """`2026-11-21T08:00:00.123456Z`, always UTC."""
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def check_lookup(request: LookupRequest) -> None:
    """Raises BadRequest for what is missing and Invalid for what is out of bounds."""
    check_policy_id(request.policy_id)
    _check_address(request)
    if request.threshold is not None:
        within("threshold", request.threshold, 0, 1)
    if request.top_k is not None:
        within("top_k", request.top_k, 1, 32)
    if request.max_age_seconds is not None:
        within("max_age_seconds", request.max_age_seconds, 0, None)


def check_put(request: PutRequest) -> None:
    """Raises BadRequest for what is missing and Invalid for what is out of bounds."""
    check_policy_id(request.policy_id)
    _check_address(request)
    if (request.response is UNSET) == (request.body is None):
        raise BadRequest("put: exactly one of response and body is required")
    if (request.body is None) != (request.media_type is None):
        raise BadRequest("put: media_type is required with body, and only with it")
    check_label("media_type", request.media_type)
    if not _HEADER_VALUE.fullmatch(request.media_type or ""):
        raise Invalid("media_type: must be printable ASCII, as it is sent in a header")
    check_label("model", request.model)
    within("prompt_tokens", request.prompt_tokens or 0, 0, MAX_TOKENS)
    within("completion_tokens", request.completion_tokens or 0, 0, MAX_TOKENS)
    within("ttl_seconds", 1 if request.ttl_seconds is None else request.ttl_seconds, 1, None)
    within("generation", request.generation or 0, 0, 2**63 - 1)
    within("upstream_ms", request.upstream_ms or 0, 0, 10**12)
    check_tags(request.tags)


def check_feedback(request: FeedbackRequest) -> None:
    """Raises Invalid for what is out of bounds. The entry's id is read where it is used."""
    if request.verdict not in VERDICTS:
        raise Invalid(f"verdict: must be one of {', '.join(VERDICTS)}")
    check_label("scope", request.scope)
    note = request.note or ""
    within("note", len(note), 0, MAX_NOTE_CHARS, "characters")
    if "\x00" in note:
        raise Invalid("note: must not contain U+0000")


def check_policy_id(policy_id: str) -> None:
    if not ID_PATTERN.fullmatch(policy_id):
        raise Invalid(f"policy_id: must match {ID_PATTERN.pattern}")


def check_tags(tags: list[str] | None, field: str = "tags") -> None:
    if tags is None:
        return
    within(field, len(tags), 0, 16, "tags")
    for tag in tags:
        if not 1 <= len(tag) <= 128 or "\x00" in tag:
            raise Invalid(f"{field}: each must have 1 to 128 characters and no U+0000")


def _check_address(request: LookupRequest | PutRequest) -> None:
    """Which entry is meant: the fields that lookup and put share."""
    if request.embedding is None and request.exact_key is None:
        raise BadRequest("embedding or exact_key is required")
    for field in ("exact_key", "partition"):
        value = getattr(request, field)
        if value is not None and not _KEY_PATTERN.fullmatch(value):
            raise Invalid(f"{field}: must be 64 hexadecimal digits")
    check_label("scope", request.scope)
    check_label("space", request.space)


def check_label(field: str, value: str | None) -> None:
    if value is None:
        return
    if len(value) > MAX_LABEL_CHARS:
        raise Invalid(f"{field}: has {len(value)} characters; at most {MAX_LABEL_CHARS}")
    if "\x00" in value:
        raise Invalid(f"{field}: must not contain U+0000")


def within(field: str, value: float, low: float, high: float | None, unit: str = "") -> None:
    # Not the other way round: a NaN, which MessagePack can carry, is within nothing.
    if not (low <= value and (value < inf if high is None else value <= high)):
        bound = f"at least {low:,}" if high is None else f"{low:,} to {high:,} {unit}".rstrip()
        raise Invalid(f"{field}: is {value:,}; must be {bound}")
