"""admit(): is a captured answer whole, and may it be kept? (`design.md` 5, "Stored only if")"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachesvc.core.model import Reason

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy

# Answers that were filtered, refused, failed or broken off are not what the next caller should get.
# Gateways word the reason in their own ways ("content_filter", "SAFETY", "cancelled"): any of these
# words in it keeps the answer out.
_NEVER_BY_DEFAULT = frozenset(
    (
        *("filter", "filtered", "safety", "blocked", "blocklist", "prohibited", "recitation"),
        *("spii", "refusal", "refused", "fail", "failed", "failure", "error", "incomplete"),
        *("abort", "aborted", "cancel", "canceled", "cancelled", "interrupted", "timeout"),
    )
)
_WORDS = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a protocol makes of a whole answer body.

    `finish_reasons` are those the answer names, one per choice that names one; `refused` tells of
    a refusal that is not a finish reason. Tokens are 0 where the answer does not say.
    """

    finish_reasons: tuple[str, ...] = ()
    refused: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Captured:
    """An answer as the transport saw it.

    `body` is decoded, or None when it was over the cap or in an encoding that cannot be undone.
    `clean` is True when the transport ended as it should and the caller stayed to the end.
    """

    status: int
    media_type: str
    body: bytes | None
    clean: bool
    oversize: bool = False


def admit(captured: Captured, reading: Reading | None, policy: Policy) -> Reason | None:
    """None when the answer may be kept, else the reason why not.

    `reading` is None when the protocol could not read the body as a whole answer.
    """
    if captured.status != 200:
        return Reason.NOT_CACHEABLE
    if captured.oversize or len(captured.body or b"") > policy.max_body_bytes:
        return Reason.TOO_LARGE
    if policy.max_body_bytes == 0:
        return Reason.TOO_LARGE
    if captured.body is None:
        return Reason.NOT_CACHEABLE
    if not captured.clean or reading is None:
        return Reason.INCOMPLETE
    return None if _finish_is_cacheable(reading, policy) else Reason.NOT_CACHEABLE


def _finish_is_cacheable(reading: Reading, policy: Policy) -> bool:
    wanted = policy.cacheable_finish_reasons
    if wanted is not None:
        named = reading.finish_reasons
        return bool(named) and all(reason in wanted for reason in named)
    words = (word for reason in reading.finish_reasons for word in _WORDS.findall(reason.lower()))
    return not reading.refused and _NEVER_BY_DEFAULT.isdisjoint(words)
