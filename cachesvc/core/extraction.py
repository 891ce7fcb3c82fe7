"""What a policy's `extract` finds: a JSONPath (RFC 9535) over the request's body.

Higress words the same with GJSON: its `messages.@reverse.0.content` is `$.messages[-1].content`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from jsonpath import JSONPath, JSONPathEnvironment, JSONPathMatch
from jsonpath.exceptions import JSONPathError
from jsonpath.filter import RelativeFilterQuery
from jsonpath.parse import Parser
from jsonpath.token import TOKEN_SELF

from cachesvc.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jsonpath.filter import BaseExpression
    from jsonpath.stream import TokenStream

    from cachesvc.core.ask import Path

MAX_CHARS = 256
_MOST_MATCHES = 1000
# Some 7 us each. Selectors that repeat, as in `$['a','a']['a','a']`, double it with every segment.
_MOST_VISITS = 10_000


class _TooMuch(JSONPathError):
    """An expression looks at more than a request may cost."""


class _Visit(JSONPathMatch):
    """A node that was looked at; all of one search share its allowance."""

    __slots__ = ()

    def __init__(self, *, filter_context: Mapping[str, Any], **node: Any) -> None:
        if next(filter_context["allowance"], None) is None:
            raise _TooMuch
        super().__init__(filter_context=filter_context, **node)


class _Search(JSONPath):
    """A path whose search ends with _TooMuch when the allowance is used up."""

    __slots__ = ()

    def finditer(
        self, data: Any, *, filter_context: Mapping[str, Any] | None = None
    ) -> Iterable[JSONPathMatch]:
        """The matches, one after the other. Raises JSONPathError while they are read."""
        root = {"obj": data, "parent": None, "path": "$", "parts": (), "root": data}
        matches: Iterable[JSONPathMatch] = [_Visit(filter_context=filter_context or {}, **root)]
        for segment in self.segments:
            matches = segment.resolve(matches)
        return matches


class _Parser(Parser):
    """Queries within filters are searches, too."""

    def parse_relative_query(self, stream: TokenStream) -> BaseExpression:
        stream.eat(TOKEN_SELF)
        return RelativeFilterQuery(_Search(env=self.env, segments=self.parse_query(stream)))


class _Environment(JSONPathEnvironment):
    parser_class = _Parser


_environment = _Environment(strict=True)
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
    except (JSONPathError, OverflowError, RecursionError) as exc:  # the second one: 1e999
        said = str(exc).splitlines()[0]
        raise Invalid(f"policy.extract: is no JSONPath (RFC 9535): {said}") from exc


def extracted(body: Any, expression: str) -> tuple[Path, ...] | None:
    """Where the texts stand that the expression finds, in its order, each once.

    A match is a text, or a list of content blocks, of which the texts are taken. None when it finds
    nothing, or anything else, or has to look at too much: then nothing can be compared.
    """
    allowance = {"allowance": iter(range(_MOST_VISITS))}
    try:
        found_all = _compiled(expression).finditer(body, filter_context=allowance)
        matches = list(islice(found_all, _MOST_MATCHES + 1))
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
def _compiled(expression: str) -> _Search:
    compiled = _environment.compile(expression)
    if not isinstance(compiled, JSONPath):
        raise JSONPathError("one path only")
    return _Search(env=_environment, segments=compiled.segments)
