"""What the caller says about caching: `Cache-Control` (RFC 9111, 5.2.1) and two skip switches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachesvc.core.model import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cachesvc.core.policy import Policy

SKIP_HEADER = "x-higress-skip-ai-cache"
# A comma, a quote, or an escaped character, which inside quotes is neither.
_BREAKS = re.compile(r'(,|"|\\.)')
_SECONDS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Steering:
    """The caller's wishes. `skip` is why the cache is left out altogether, None if it is not."""

    skip: Reason | None = None
    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_seconds: int | None = None
    ttl_seconds: int | None = None  # s-maxage

    @property
    def plain(self) -> bool:
        """The caller steers nothing."""
        return self is _PLAIN or self == _PLAIN


_PLAIN = Steering()


def read_steering(headers: Mapping[str, Sequence[str]], policy: Policy) -> Steering:
    """The caller's wishes from request headers (lower-case name -> values).

    Directives are case-insensitive; the argument form of `no-cache` and of `no-store` is not the
    directive; a number that cannot be read is ignored, and of several the strictest counts.
    """
    said = headers.get("cache-control")
    if not said:
        skip = _skip(headers, policy)
        return _PLAIN if skip is None else Steering(skip=skip)
    directives = list(_directives(said))
    bare = {name for name, argument in directives if argument is None}
    return Steering(
        skip=_skip(headers, policy),
        no_cache="no-cache" in bare,
        no_store="no-store" in bare,
        only_if_cached="only-if-cached" in bare,
        max_age_seconds=_seconds(directives, "max-age"),
        ttl_seconds=_seconds(directives, "s-maxage"),
    )


def _skip(headers: Mapping[str, Sequence[str]], policy: Policy) -> Reason | None:
    switches = headers.get(SKIP_HEADER)
    if switches and any(value.strip().lower() == "on" for value in switches):
        return Reason.CALLER_SKIP
    for rule in policy.bypass_on:
        if rule.equals in headers.get(rule.header.lower(), ()):
            return Reason.BYPASS_RULE
    return None


def _directives(values: Sequence[str]) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for part in (part for value in values for part in _parts(value)):
        name, equals, argument = part.partition("=")
        found.append((name.strip().lower(), argument.strip().strip('"') if equals else None))
    return found


def _parts(value: str) -> list[str]:
    """What stands between the commas that are not inside quotes; in time linear to the length."""
    parts, quoted = [""], False
    for piece in _BREAKS.split(value):
        if piece == "," and not quoted:
            parts.append("")
            continue
        quoted ^= piece == '"'
        parts[-1] += piece
    return parts


def _seconds(directives: list[tuple[str, str | None]], name: str) -> int | None:
    numbers = (argument for found, argument in directives if found == name and argument)
    return min((int(n) for n in numbers if _SECONDS.fullmatch(n)), default=None)
