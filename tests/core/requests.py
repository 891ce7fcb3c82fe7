"""One chat request with every field, and the ways in which another can differ from it."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from cachesvc.core.keys import Target
from cachesvc.core.policy import Policy
from cachesvc.dialects.openai_chat import OpenAIChat

if TYPE_CHECKING:
    from cachesvc.core.ask import Ask

POLICY = Policy()
TARGET = Target(
    method="POST",
    path="/v1/chat/completions",
    query="",
    upstream="https://api.openai.com:443",
    headers=(("openai-project", ("p1",)),),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
any_json = st.recursive(
    st.none() | st.booleans() | _numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
BODY: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
    ],
    "temperature": 0.2,
    "top_p": 0.9,
    "seed": 7,
}


def ask(body: dict[str, Any]) -> Ask:
    return OpenAIChat().read(json.dumps(body).encode())


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """BODY with the value at `path` set."""
    body = copy.deepcopy(BODY)
    place: Any = body
    for step in path[:-1]:
        place = place[step]
    if isinstance(place, list) and path[-1] == len(place):
        place.append(to)
    else:
        place[path[-1]] = to
    return body


def without(*path: str | int) -> dict[str, Any]:
    """BODY with the value at `path` taken out."""
    body = copy.deepcopy(BODY)
    place: Any = body
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return body


def shuffled(value: Any, random: Any) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(inner, random)) for key, inner in value.items()]
        random.shuffle(items)
        return dict(items)
    return [shuffled(inner, random) for inner in value] if isinstance(value, list) else value
