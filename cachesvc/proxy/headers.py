"""What a judged reply says about the cache: our headers, and Cache-Status (RFC 9211)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from http_sfv.item import Item
from http_sfv.list import List
from http_sfv.types import Token

from cachesvc.core.model import Bypass, Miss, Reason, Tier
from cachesvc.proxy.telemetry import FAILURES

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy
    from cachesvc.proxy.client import Found
    from cachesvc.proxy.request import RawHeaders
    from cachesvc.settings import ProxyHeaders

_AISIX = {
    "status": "x-aisix-cache",
    "tier": "x-aisix-cache-layer",
    "similarity": "x-aisix-cache-similarity",
}
_AISIX_OWN = {name.encode("ascii") for name in _AISIX.values()}
_BY_POLICY = FAILURES | {Reason.BYPASS_RULE, Reason.STATEFUL}
_TOKEN = re.compile(r"[a-z_]{1,64}")
_CACHE_STATUS = b"cache-status"


class CacheHeaders:
    """Builds the headers of judged replies, with the names of the settings or of the policy."""

    def __init__(self, names: ProxyHeaders) -> None:
        self._names = {field: getattr(names, field) for field in names.__struct_fields__}
        self._own = {name.lower().encode("ascii") for name in self._names.values()}

    def of_hit(self, found: Found, policy: Policy) -> RawHeaders:
        """The headers of a replayed answer."""
        said = [(b"content-type", found.media_type.encode("latin-1"))]
        if not policy.headers:
            return said
        said.append((b"age", b"%d" % found.age_seconds))
        values = {"tier": found.tier.value, "age": str(found.age_seconds)}
        if found.entry_id:
            values["entry_id"] = found.entry_id
        if found.tier is Tier.SEMANTIC:
            values["similarity"] = f"{found.similarity:.4f}"
        detail = found.reason if _TOKEN.fullmatch(found.reason) else found.tier.value
        said += self._named("HIT", values, policy)
        return [*said, (_CACHE_STATUS, _hit_status(found.ttl_seconds, detail))]

    def of_pass(
        self,
        outcome: Miss | Bypass,
        status: int | None,
        policy: Policy,
        *,
        collapsed: bool = False,
    ) -> RawHeaders:
        """The headers of a forwarded answer; `status` is the upstream's, None when none came.

        `collapsed`: the answer came of a call that another request had begun.
        """
        if not policy.headers:
            return []
        said = self._named("MISS" if isinstance(outcome, Miss) else "BYPASS", {}, policy)
        forward, detail = _forward(outcome), outcome.reason.value
        member = _cache_status(forward, status, None, detail, collapsed=collapsed)
        return [*said, (_CACHE_STATUS, member)]

    def of_refusal(self, outcome: Miss | Bypass, policy: Policy) -> RawHeaders:
        """The headers of an `only-if-cached` that was not forwarded."""
        if not policy.headers:
            return []
        said = self._named("MISS" if isinstance(outcome, Miss) else "BYPASS", {}, policy)
        return [
            *said,
            (_CACHE_STATUS, _cache_status(None, None, None, outcome.reason.value, hit=False)),
        ]

    def merged(self, theirs: RawHeaders, ours: RawHeaders, policy: Policy) -> RawHeaders:
        """The upstream's headers, then ours.

        None of our names is left to the upstream, also where we say nothing under it: what speaks
        of a cache under these names is this one. Cache-Status is a list, and Age is the upstream's.
        """
        own = _AISIX_OWN if policy.header_names == "aisix" else self._own
        return [*((name, v) for name, v in theirs if name.lower() not in own), *ours]

    def _named(
        self, status: str, values: dict[str, str], policy: Policy
    ) -> list[tuple[bytes, bytes]]:
        aisix = policy.header_names == "aisix"
        names = _AISIX if aisix else self._names
        said = {"status": status.lower() if aisix else status, **values}
        return [
            (names[field].encode("ascii"), value.encode("latin-1"))
            for field, value in said.items()
            if field in names
        ]


def _forward(outcome: Miss | Bypass) -> str:
    """Why the request went on, in the words of RFC 9211, 2.2."""
    if outcome.reason in _BY_POLICY:
        return "bypass"
    return "request" if isinstance(outcome, Bypass) else "miss"


def _hit_status(ttl: int | None, detail: str) -> bytes:
    """A hit's member: made once per detail, since there are as many lifetimes as seconds."""
    if ttl is None:
        return _cache_status(None, None, None, detail)
    return _cache_status(None, None, 0, detail).replace(b"; ttl=0;", b"; ttl=%d;" % ttl)


@lru_cache(maxsize=4096)
def _cache_status(
    forward: str | None,
    status: int | None,
    ttl: int | None,
    detail: str,
    *,
    hit: bool = True,
    collapsed: bool = False,
) -> bytes:
    """One member of Cache-Status; without `forward` it tells of a hit, or of neither."""
    member = Item(Token("cachesvc"))
    if forward is not None:
        member.params["fwd"] = Token(forward)
        if status is not None:
            member.params["fwd-status"] = status
        if collapsed:
            member.params["collapsed"] = True
    elif hit:
        member.params["hit"] = True
        if ttl is not None:
            member.params["ttl"] = ttl
    member.params["detail"] = Token(detail)
    whole = List()
    whole.append(member)
    # No value here can hold a semicolon; the space is how RFC 9211 itself writes its examples.
    return str(whole).replace(";", "; ").encode("ascii")
