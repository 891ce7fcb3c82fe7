"""Properties of the keys over the requests of every protocol, changed at any place."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.core import canonical, keys
from cachesvc.core.policy import Policy
from cachesvc.dialects.table import DIALECTS
from cachesvc.errors import Unreadable
from tests.core.requests import TARGET, any_json, shuffled
from tests.dialects.samples import SAMPLES

if TYPE_CHECKING:
    from cachesvc.core.ask import Ask, Path
    from cachesvc.dialects.base import Dialect
    from tests.dialects.shapes import Sample

POLICIES = [
    Policy(),
    Policy(window=3),
    Policy(window=2, ignore_roles=()),
    Policy(window=9, ignore_roles=("assistant",)),
    Policy(window=2, extract="$.messages[*].content"),
]
# What a body's places are set to: also what is nearly the same, and what a shape might turn on.
_values = any_json | st.sampled_from(
    (
        *(None, True, False, 0, 1, 1.0, -0.0, 0.2, 0.2000001, "", "0", [], {}, "user", "system"),
        *("text", "input_text", "message", "item_reference", [0], ["a"], [[0]], {"type": "text"}),
        *([{"type": "text", "text": "hi"}], [{"role": "user", "content": "hi"}]),
    )
)
_fields = st.sampled_from(
    (
        *("stream", "temperature", "top_p", "tools", "name", "type", "text", "role", "content"),
        *("store", "input", "prompt", "system", "instructions", "echo", "container", "user", "x"),
    )
)
every = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.dialect.name)


def read(dialect: Dialect, body: Any) -> Ask | None:
    try:
        return dialect.read(json.dumps(body).encode())
    except Unreadable:
        return None


def question(ask: Ask | None, policy: Policy) -> keys.Question | None:
    return None if ask is None else keys.question(ask, policy)


def containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for one in inner for found in containers(one)] + (
        [value] if isinstance(value, (dict, list)) else []
    )


def changed_somewhere(body: dict[str, Any], data: Any) -> dict[str, Any]:
    """The body with a member or an element set, added or taken out, at any depth."""
    changed = copy.deepcopy(body)
    place = data.draw(st.sampled_from(containers(changed)))
    value = data.draw(_values)
    if isinstance(place, list):
        at = data.draw(st.integers(0, len(place)))
        place[at : at + data.draw(st.integers(0, 1))] = data.draw(st.sampled_from([[], [value]]))
    else:
        name = data.draw((st.sampled_from(sorted(place)) if place else _fields) | _fields)
        place.pop(name, None)
        if data.draw(st.integers(0, 3)):
            place[name] = value
    return changed


def meant(body: dict[str, Any]) -> bytes:
    """The body without the differences that make no other request, as the contract lists them."""
    rest = dict(body)
    stream = rest.pop("stream", None)
    rounded = {}
    for name in ("temperature", "top_p"):
        value = rest.get(name)
        if type(value) in (int, float) and abs(rest[name]) < 1e6:
            rounded[name] = round(rest.pop(name) * 1000)
    return canonical.encode([rest, rounded, bool(stream)])


def without_texts(body: dict[str, Any], paths: tuple[Path, ...]) -> dict[str, Any]:
    blanked = copy.deepcopy(body)
    for path in paths:
        place: Any = blanked
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = {"embedded": True}
    return blanked


@every
def test_the_sample_has_the_tiers_that_its_protocol_has(sample: Sample) -> None:
    ask = read(sample.dialect, sample.request)
    assert ask is not None
    asked = keys.question(ask, Policy())
    if sample.dialect.name == "openai-embeddings":
        assert asked is None
    else:
        assert asked is not None
        assert asked.text in ("The capital of France?", "Once upon")


@every
@given(st.data())
def test_two_requests_share_an_exact_key_only_if_they_are_the_same(
    sample: Sample, data: Any
) -> None:
    changed = sample.request
    for _ in range(data.draw(st.integers(1, 3))):
        changed = changed_somewhere(changed, data)
    one, other = read(sample.dialect, sample.request), read(sample.dialect, changed)
    assert one is not None
    if other is not None:
        same_key = keys.exact_key(one, TARGET) == keys.exact_key(other, TARGET)
        assert same_key is (meant(sample.request) == meant(changed))


@every
@given(st.data())
def test_two_requests_share_a_partition_only_if_the_embedded_text_alone_differs(
    sample: Sample, data: Any
) -> None:
    policy = data.draw(st.sampled_from(POLICIES))
    base = changed_somewhere(sample.request, data) if data.draw(st.booleans()) else sample.request
    changed = changed_somewhere(base, data)
    one, other = read(sample.dialect, base), read(sample.dialect, changed)
    asked = question(one, policy)
    asked_other = question(other, policy)
    if not (one and other and asked and asked_other):
        return
    same_rest = asked.paths == asked_other.paths and meant(
        without_texts(base, asked.paths)
    ) == meant(without_texts(changed, asked_other.paths))
    partition = keys.partition(one, TARGET, policy, asked)
    assert (partition == keys.partition(other, TARGET, policy, asked_other)) is same_rest
    assert partition != keys.exact_key(one, TARGET)


@every
@given(st.data())
def test_another_embedded_text_is_in_the_same_partition_and_has_another_exact_key(
    sample: Sample, data: Any
) -> None:
    policy = data.draw(st.sampled_from(POLICIES))
    one = read(sample.dialect, sample.request)
    asked = question(one, policy)
    if one is None or asked is None:
        assert sample.dialect.name == "openai-embeddings" or policy.extract is not None
        return
    changed = copy.deepcopy(sample.request)
    place: Any = changed
    path = data.draw(st.sampled_from(asked.paths))
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] += "?"
    other = read(sample.dialect, changed)
    asked_other = question(other, policy)
    assert other is not None
    assert asked_other is not None
    assert asked_other.text != asked.text
    assert keys.exact_key(other, TARGET) != keys.exact_key(one, TARGET)
    assert keys.partition(other, TARGET, policy, asked_other) == keys.partition(
        one, TARGET, policy, asked
    )


@every
@given(st.data(), st.randoms(use_true_random=False))
def test_the_order_of_keys_never_splits(sample: Sample, data: Any, random: Any) -> None:
    body = changed_somewhere(sample.request, data)
    one, other = read(sample.dialect, body), read(sample.dialect, shuffled(body, random))
    assert (one is None) is (other is None)
    if one is not None and other is not None:
        assert keys.exact_key(one, TARGET) == keys.exact_key(other, TARGET)
        assert (one.comparable, one.stateful, one.turns) == (
            other.comparable,
            other.stateful,
            other.turns,
        )


@every
@pytest.mark.parametrize("stream", [None, False, 0])
def test_no_stream_in_any_wording_never_splits(sample: Sample, stream: Any) -> None:
    asks = [
        read(sample.dialect, body)
        for body in (
            sample.request,
            {**sample.request, "stream": stream},
            {**sample.request, "stream": True},
        )
    ]
    absent, worded, streamed = [keys.exact_key(ask, TARGET) for ask in asks if ask is not None]
    assert absent == worded
    assert absent != streamed


@given(any_json | st.dictionaries(_fields, _values, max_size=6))
def test_any_json_is_read_or_called_unreadable(value: Any) -> None:
    for dialect in DIALECTS:
        ask = read(dialect, value)
        if ask is not None:
            keys.exact_key(ask, TARGET)
            keys.question(ask, Policy(ignore_roles=()))


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_called_unreadable(body: bytes) -> None:
    for dialect in DIALECTS:
        with pytest.raises(Unreadable):
            dialect.read(body)


def test_one_body_has_another_key_in_each_protocol_that_reads_it() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "input": "hi"}
    asks = [ask for dialect in DIALECTS if (ask := read(dialect, {**body})) is not None]
    assert len(asks) == 4  # completions have a prompt, Responses another kind of it
    assert len({keys.exact_key(ask, TARGET) for ask in asks}) == 4


@every
def test_no_request_of_one_protocol_is_anothers(sample: Sample) -> None:
    readers = [d.name for d in DIALECTS if read(d, sample.request) is not None]
    alike = {"openai-chat", "anthropic-messages"}, {"openai-responses"}
    assert sample.dialect.name in readers
    assert len(readers) == 1 or set(readers) in alike
