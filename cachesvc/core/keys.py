"""The two keys, on which the correctness of everything rests (`design.md` 3).

The exact key is a hash of everything that makes two requests the same request. The partition is
the same hash over the same form, with the embedded texts taken out: what must be *equal* before
two prompts may be *compared*.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cachesvc.core import canonical
from cachesvc.core.ask import text_at
from cachesvc.core.extraction import extracted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesvc.core.ask import Ask, Path
    from cachesvc.core.policy import Policy

SCHEME = 1  # raise it when the same request gets another key: old entries are then never found
KEY_HEADERS = (
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
    "openai-organization",
    "openai-project",
)
# Sampling parameters that differ by float noise only are the same request.
_ROUNDED = ("temperature", "top_p")
_ROUNDED_BELOW = 1e6
# Stands where an embedded text stood. No protocol has a number there, so nothing can forge it.
_PLACEHOLDER = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes and what of its envelope shapes the answer.

    `headers` are (lower-case name, values in order), sorted by name, only those of `KEY_HEADERS`
    and the operator's `key_headers`. `forced` are body fields that the upstream sets itself.
    """

    method: str
    path: str
    query: str
    upstream: str
    headers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    forced: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """The text that is embedded, and the places in the body it was taken from."""

    text: str
    paths: tuple[Path, ...]


def effective_model(ask: Ask, target: Target) -> str:
    """The model that answers: the operator's, where one is forced."""
    return str(target.forced.get("model", ask.model))


def exact_key(ask: Ask, target: Target) -> bytes:
    """SHA-256 (32 bytes) of everything that makes two requests the same request."""
    return _digest(b"exact", _form(ask, target, ask.body))


def question(ask: Ask, policy: Policy) -> Question | None:
    """The embedded text: the last `window` messages that survive `ignore_roles`.

    With `extract` it is the last `window` texts that the expression finds. None when the request
    has no semantic tier: not comparable, no such text, or only white space. One text is taken as it
    is; of several, backslash and newline are escaped in each and they are joined by a newline, so
    that no text can forge a boundary between two.
    """
    if not ask.comparable:
        return None
    if policy.extract is None:
        surviving = [turn for turn in ask.turns if turn.role not in policy.ignore_roles]
        paths = tuple(path for turn in surviving[-policy.window :] for path in turn.texts)
    else:
        paths = _extracted(ask, policy.extract)[-policy.window :]
    texts = [text_at(ask.body, path) for path in paths]
    if not any(text.strip() for text in texts):
        return None
    if len(texts) == 1:
        return Question(texts[0], paths)
    escaped = (text.replace("\\", "\\\\").replace("\n", "\\n") for text in texts)
    return Question("\n".join(escaped), paths)


def _extracted(ask: Ask, expression: str) -> tuple[Path, ...]:
    """The texts that it finds, in the conversation's order; none where it finds anything else.

    Only what the protocol knows as a text of the conversation may leave the partition: an
    expression that finds the model, a role or a parameter must not make them comparable.
    """
    found = set(extracted(ask.body, expression) or ())
    paths = tuple(path for turn in ask.turns for path in turn.texts if path in found)
    return paths if len(paths) == len(found) else ()


def partition(ask: Ask, target: Target, policy: Policy, asked: Question) -> bytes:
    """SHA-256 (32 bytes) of everything that must be equal before two prompts may be compared."""
    body = ask.body
    for path in asked.paths:
        body = _replaced(body, path)
    form = _form(ask, target, body)
    rule: dict[str, Any] = {
        "window": policy.window,
        "ignore_roles": sorted(set(policy.ignore_roles)),
        "places": [list(path) for path in asked.paths],
    }
    if policy.extract is not None:
        rule["extract"] = policy.extract
    form["rule"] = rule
    return _digest(b"partition", form)


def _form(ask: Ask, target: Target, body: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in body.items() if name not in target.forced}
    rest.pop("stream", None)  # said by `stream` below: absent, false and null are one request
    return {
        "protocol": ask.protocol,
        "method": target.method,
        "path": target.path,
        "query": target.query,
        "upstream": target.upstream,
        "headers": [[name, list(values)] for name, values in target.headers],
        "forced": dict(target.forced),
        "stream": ask.stream,
        "thousandths": _take_rounded(rest),
        "body": rest,
    }


def _take_rounded(rest: dict[str, Any]) -> dict[str, int]:
    """Move the rounded parameters out of `rest`, in thousandths.

    They leave the body, so that a rounded value can never equal a literal one. What is no number,
    or too large to be a sampling parameter, stays as it is.
    """
    taken: dict[str, int] = {}
    for name in _ROUNDED:
        value = rest.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and abs(rest[name]) < _ROUNDED_BELOW:
            taken[name] = round(rest.pop(name) * 1000)
    return taken


def _replaced(node: Any, path: Path) -> Any:
    """A copy of `node` with the placeholder at `path`; what is off the path is shared."""
    if not path:
        return _PLACEHOLDER
    copy = node.copy()
    copy[path[0]] = _replaced(node[path[0]], path[1:])
    return copy


def _digest(purpose: bytes, form: dict[str, Any]) -> bytes:
    prefix = b"cachesvc %s %d\n" % (purpose, SCHEME)
    return hashlib.sha256(prefix + canonical.encode(form)).digest()
