"""What a policy's `extract` finds: a JSONPath (RFC 9535) over the request's body.

Higress words the same with GJSON: its `messages.@reverse.0.content` is `$.messages[-1].content`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from jsonpath import JSONPathEnvironment
from jsonpath.exceptions import JSONPathError

from cachesvc.errors import Invalid

if TYPE_CHECKING:
    from jsonpath import CompoundJSONPath, JSONPath

    from cachesvc.core.ask import Path

MAX_CHARS = 256
_MOST_MATCHES = 1000

_environment = JSONPathEnvironment(strict=True)
# Regular expressions over what callers send could take for ever.
for _name in ("match", "search"):
    _environment.function_extensions.pop(_name, None)


def check_extract(expression: str) -> None:
    """Raises Invalid unless it is an expression that is quick on every body."""
    if not 1 <= len(expression) <= MAX_CHARS:
        raise Invalid(
            f"policy.extract: has {len(expression)} characters; must be 1 to {MAX_CHARS} characters"
        )
    # Each of these may walk the whole body for every node that is walked already.
    if expression.count("..") > 1 or expression.count("$") > 1:
        raise Invalid('policy.extract: may have one ".." and one "$" at most')
    try:
        _compiled(expression)
    except JSONPathError as exc:
        said = str(exc).splitlines()[0]
        raise Invalid(f"policy.extract: is no JSONPath (RFC 9535): {said}") from exc


def extracted(body: Any, expression: str) -> tuple[Path, ...] | None:
    """Where the texts stand that the expression finds, in its order, each once.

    A match is a text, or a list of content blocks, of which the texts are taken. None when it finds
    nothing, or anything else: then nothing can be compared.
    """
    try:
        matches = list(islice(_compiled(expression).finditer(body), _MOST_MATCHES + 1))
    except (JSONPathError, RecursionError):
        return None
    if not 0 < len(matches) <= _MOST_MATCHES:
        return None
    paths: dict[Path, None] = {}
    for match in matches:
        found = _texts(match.value, tuple(match.parts))
        if found is None:
            return None
        paths.update(dict.fromkeys(found))
    return tuple(paths)


def _texts(value: Any, at: Path) -> list[Path] | None:
    if isinstance(value, str):
        return [at]
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(block, dict) and isinstance(block.get("text"), str) for block in value):
        return [(*at, place, "text") for place in range(len(value))]
    return None


@lru_cache(maxsize=256)
def _compiled(expression: str) -> JSONPath | CompoundJSONPath:
    return _environment.compile(expression)
