"""Properties of the keys over any request."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cachesvc.core import canonical, keys
from cachesvc.dialects.openai_chat import OpenAIChat
from cachesvc.errors import Unreadable
from tests.core.requests import POLICY, TARGET, any_json, shuffled, texts

_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"]), "content": texts},
    optional={"name": texts, "tool_calls": any_json, "x": any_json},
)
_bodies = st.fixed_dictionaries(
    {"model": texts, "messages": st.lists(_message, min_size=1, max_size=3)},
    optional={
        "temperature": any_json,
        "top_p": any_json,
        "seed": any_json,
        "tools": any_json,
        "y": any_json,
    },
)

_comparable_bodies = st.fixed_dictionaries(
    {
        "model": texts,
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.just("hello")}),
            min_size=1,
            max_size=3,
        ),
    },
    optional={"temperature": any_json, "seed": any_json, "y": any_json},
)


def both(body: dict[str, Any]) -> tuple[bytes, bytes | None]:
    ask = OpenAIChat().read(json.dumps(body).encode())
    asked = keys.question(ask, POLICY)
    return (
        keys.exact_key(ask, TARGET),
        keys.partition(ask, TARGET, POLICY, asked) if asked else None,
    )


def same_but_for_type(one: Any, other: Any) -> bool:
    return canonical.encode(one) == canonical.encode(other)


@given(_bodies, st.randoms(use_true_random=False))
def test_the_order_of_keys_never_splits(body: dict[str, Any], random: Any) -> None:
    assert both(shuffled(body, random)) == both(body)


@given(_bodies, st.sampled_from([None, False, 0]))
def test_no_stream_in_any_wording_never_splits(body: dict[str, Any], stream: Any) -> None:
    assert both({**body, "stream": stream}) == both(body)
    assert both({**body, "stream": True})[0] != both(body)[0]


@given(_bodies, st.floats(0, 2), st.floats(-4e-4, 4e-4))
def test_rounding_never_splits(body: dict[str, Any], value: float, noise: float) -> None:
    thousandths = round(value * 1000)
    near = {**body, "temperature": thousandths / 1000 + noise}
    assert both(near) == both({**body, "temperature": thousandths / 1000})


@given(_bodies, st.sampled_from(["seed", "tools", "y", "z", "user"]), any_json)
def test_another_value_of_any_parameter_always_splits(
    body: dict[str, Any], name: str, value: Any
) -> None:
    assume(name not in body or not same_but_for_type(body[name], value))
    changed = {**body, name: value}
    assert both(changed)[0] != both(body)[0]
    assert None in (both(changed)[1], both(body)[1]) or both(changed)[1] != both(body)[1]


@given(_bodies, st.data())
def test_another_message_always_splits_the_exact_key(body: dict[str, Any], data: Any) -> None:
    changed = copy.deepcopy(body)
    place = data.draw(st.integers(0, len(body["messages"]) - 1))
    field = data.draw(st.sampled_from(["role", "content", "x"]))
    changed["messages"][place][field] = data.draw(texts)
    assume(not same_but_for_type(changed, body))
    assert both(changed)[0] != both(body)[0]


@given(_comparable_bodies, texts.filter(str.strip))
def test_two_requests_in_one_partition_differ_in_the_embedded_text_alone(
    body: dict[str, Any], text: str
) -> None:
    asked = keys.question(OpenAIChat().read(json.dumps(body).encode()), POLICY)
    assert asked is not None
    changed = copy.deepcopy(body)
    (_, place, _field) = asked.paths[-1]
    changed["messages"][place]["content"] = text
    assert both(changed)[1] == both(body)[1]


@given(any_json)
def test_canonicalisation_never_fails_on_json_and_reads_its_own_bytes(value: Any) -> None:
    encoded = canonical.encode(value)
    assert canonical.encode(canonical.parse(encoded)) == encoded


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=40) | any_json.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_read_or_called_unreadable(body: bytes) -> None:
    try:
        ask = OpenAIChat().read(body)
    except Unreadable:
        return
    keys.exact_key(ask, TARGET)
