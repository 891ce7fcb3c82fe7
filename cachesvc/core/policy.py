"""A policy: the numbers and switches an operator may turn, with their bounds.

`{}` is a policy. An unknown field, or a value out of range, raises Invalid and names the field.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from cachesvc.core.extraction import check_extract
from cachesvc.errors import BadRequest, Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesvc.core.model import Tier

MAX_TTL_SECONDS = 31_536_000
MAX_BODY_BYTES = 16 * 1024 * 1024
ID_PATTERN = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_TABLE_NAME = re.compile(r"[a-z0-9_-]{0,32}")
_UNCHANGING_ROLES = ("system", "developer", "assistant", "tool", "function")


class BypassRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request whose `header` has exactly the value `equals` is neither read nor written."""

    header: str
    equals: str


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's rules for a tenant's traffic. Fields and defaults: `design.md` 4."""

    id: str = ""
    name: str = ""
    enabled: bool = True
    priority: int = 0
    applies_to: str = "all"
    mode: str = "live"
    tiers: tuple[str, ...] = ("exact", "semantic")
    threshold: float = 0.92
    threshold_floor: float | None = None
    top_k: int = 4
    ttl_seconds: int = 3600
    semantic_ttl_seconds: int | None = None
    sharing: str = "credential"
    scope_headers: tuple[str, ...] = ()
    window: int = 1
    ignore_roles: tuple[str, ...] = _UNCHANGING_ROLES
    extract: str | None = None
    embed: str = ""
    streaming: bool = True
    headers: bool = True
    collapse: bool = True
    max_body_bytes: int = 1_048_576
    max_entries: int | None = None
    max_bytes: int | None = None  # of bodies, prompts and vectors
    bypass_on: tuple[BypassRule, ...] = ()
    max_temperature: float | None = None
    cacheable_finish_reasons: tuple[str, ...] | None = None
    usage_on_hit: str = "original"
    header_names: str = "apisix"
    replay: str = "at_once"
    generation: int = 0  # read-only: what a caller sends here is ignored

    @property
    def floor(self) -> float:
        """The lowest threshold a caller may ask for."""
        return self.threshold if self.threshold_floor is None else self.threshold_floor

    @property
    def semantic_ttl(self) -> int:
        """Seconds an entry lives on the semantic tier."""
        return self.ttl_seconds if self.semantic_ttl_seconds is None else self.semantic_ttl_seconds

    @property
    def active(self) -> bool:
        return self.enabled and self.mode != "off"

    def has(self, tier: Tier) -> bool:
        return tier in self.tiers

    def effective_threshold(self, asked: float | None) -> float:
        """A caller may tighten, never loosen below the floor."""
        return self.threshold if asked is None else max(asked, self.floor)


def resolve(policy: Policy, policy_id: str, generation: int) -> Policy:
    """The policy with every default written out, as `GET /policies` shows it."""
    return msgspec.structs.replace(
        policy,
        id=policy_id,
        name=policy.name or policy_id,
        threshold_floor=policy.floor,
        semantic_ttl_seconds=policy.semantic_ttl,
        generation=generation,
    )


def read_policy(document: bytes, policy_id: str, *, messagepack: bool = False) -> Policy:
    """A policy from its JSON text, or from MessagePack.

    Raises BadRequest for what is no policy at all (not JSON, a wrong type) and Invalid for an
    unknown field or a value out of range.
    """
    try:
        decode = msgspec.msgpack.decode if messagepack else msgspec.json.decode
        policy = decode(document, type=Policy)
    except msgspec.ValidationError as exc:
        raise _misfit(str(exc)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest("policy: the body cannot be read") from exc
    check_policy(policy, policy_id)
    return msgspec.structs.replace(policy, id="", generation=0)


def _misfit(message: str) -> BadRequest | Invalid:
    """msgspec's complaint about a document that can be read, as ours."""
    what, _, where = message.partition(" - at `$")
    if "out of range" in what:  # 1e400: a number as the grammar has it, but none that we can keep
        return Invalid(f"policy{where.rstrip('`')}: must be finite")
    what, where = what.replace("`", ""), where.rstrip("`")
    _, unknown, name = what.partition("unknown field ")
    if unknown:
        return Invalid(f"policy{where}.{name}: is no field of a policy")
    return BadRequest(f"policy{where}: {what[:1].lower()}{what[1:]}")


def check_policy(policy: Policy, policy_id: str) -> None:
    """Raises Invalid, naming the field and the bound, when a value is out of range."""
    if policy.id not in ("", policy_id):
        raise Invalid(f"policy.id: is {policy.id!r}, but the path says {policy_id!r}")
    _within("name", len(policy.name), 0, 128, "characters")
    _within("priority", policy.priority, -1_000_000, 1_000_000)
    _check_applies_to(policy.applies_to)
    _one_of("mode", policy.mode, ("live", "shadow", "off"))
    _check_tiers(policy.tiers)
    _within("threshold", policy.threshold, 0, 1)
    _within("threshold_floor", policy.floor, 0, policy.threshold, "(the threshold)")
    _within("top_k", policy.top_k, 1, 32)
    _within("ttl_seconds", policy.ttl_seconds, 1, MAX_TTL_SECONDS)
    _within("semantic_ttl_seconds", policy.semantic_ttl, 1, MAX_TTL_SECONDS)
    _one_of("sharing", policy.sharing, ("credential", "shared"))
    _check_headers(policy)
    _within("window", policy.window, 1, 1000)
    _within("ignore_roles", len(policy.ignore_roles), 0, 32, "roles")
    if policy.extract is not None:
        check_extract(policy.extract)
    if not _TABLE_NAME.fullmatch(policy.embed):
        raise Invalid(f"policy.embed: is {policy.embed[:64]!r}; must match {_TABLE_NAME.pattern}")
    _within("max_body_bytes", policy.max_body_bytes, 0, MAX_BODY_BYTES)
    if policy.max_entries is not None:
        _within("max_entries", policy.max_entries, 1, 10**12)
    if policy.max_bytes is not None:
        _within("max_bytes", policy.max_bytes, 1, 10**15)
    if policy.max_temperature is not None:
        _within("max_temperature", policy.max_temperature, 0, 100)
    _within(
        "cacheable_finish_reasons", len(policy.cacheable_finish_reasons or ()), 0, 32, "reasons"
    )
    _one_of("usage_on_hit", policy.usage_on_hit, ("original", "zero"))
    _one_of("header_names", policy.header_names, ("apisix", "aisix"))
    _one_of("replay", policy.replay, ("at_once", "paced"))
    if b"\\u0000" in msgspec.json.encode(policy):
        raise Invalid("policy: no text may contain U+0000")


def _check_applies_to(applies_to: str) -> None:
    prefix, _, rest = applies_to.partition(":")
    if applies_to != "all" and (prefix not in ("model", "api_key") or not 1 <= len(rest) <= 256):
        raise Invalid(
            f"policy.applies_to: is {applies_to[:64]!r}; "
            'must be "all", "model:<name>" or "api_key:<scope>"'
        )


def _check_tiers(tiers: tuple[str, ...]) -> None:
    if not tiers or len(set(tiers)) != len(tiers) or not set(tiers) <= {"exact", "semantic"}:
        raise Invalid('policy.tiers: must hold "exact", "semantic", or both, each once')


def _check_headers(policy: Policy) -> None:
    _within("scope_headers", len(policy.scope_headers), 0, 16, "headers")
    _within("bypass_on", len(policy.bypass_on), 0, 32, "rules")
    rules = ((f"bypass_on[{i}].header", rule.header) for i, rule in enumerate(policy.bypass_on))
    scopes = ((f"scope_headers[{i}]", name) for i, name in enumerate(policy.scope_headers))
    for field, name in (*scopes, *rules):
        if not _HEADER_NAME.fullmatch(name):
            raise Invalid(f"policy.{field}: {name[:64]!r} is not a header name")


def _within(field: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        bound = f"{low:,} to {high:,} {unit}".rstrip()
        raise Invalid(f"policy.{field}: is {value:,}; must be {bound}")


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Invalid(f"policy.{field}: is {value[:64]!r}; must be one of {', '.join(allowed)}")


def match_policy(
    policies: list[Policy], *, model: str, scope_of: Callable[[Policy], str]
) -> Policy | None:
    """The policy that rules a request: highest priority, then the narrower, then the name.

    `scope_of(policy)` gives the scope this request has under that policy.
    A disabled policy, or one whose mode is off, never matches.
    """
    matching = [p for p in policies if p.active and _applies(p, model, scope_of)]
    return min(
        matching, key=lambda p: (-p.priority, p.applies_to == "all", p.name, p.id), default=None
    )


def _applies(policy: Policy, model: str, scope_of: Callable[[Policy], str]) -> bool:
    prefix, _, rest = policy.applies_to.partition(":")
    if prefix == "model":
        return rest == model
    if prefix == "api_key":
        return rest == scope_of(policy)
    return True
