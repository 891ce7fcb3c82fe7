r"""Half of a surrogate pair in a body: refused by name, and with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service.serving import KEY, Api, refused

if TYPE_CHECKING:
    import httpx

HALVES = [
    rb'"\ud800"',
    rb'{"content":"broken off \uD83D"}',
    rb'{"content":"\udc00 alone, and then some more text"}',
    rb'"\ud83d\ud83d\ude00"',
    rb'"\\\\\ud800 after backslashes"',
    rb'{"\ud800":1}',
]


def put(api: Api, more: bytes, **headers: str) -> httpx.Response:
    body = b'{"policy_id":"p","exact_key":"%s",%s}' % (KEY.encode(), more)
    return api.call("POST", "/cache/put", body, **headers)


@pytest.mark.parametrize("text", HALVES)
def test_a_response_with_half_a_pair_is_400_and_says_to_put_it_as_body(
    nowhere: Api, text: bytes
) -> None:
    reply = put(nowhere, b'"response":' + text)
    refused(reply, 400, "BAD_REQUEST", "response: ", "half of a surrogate pair", "as body")


def test_it_says_so_in_messagepack_too(packed: Api) -> None:
    for text in HALVES:
        asked: dict[str, Any] = {"policy_id": "p", "exact_key": KEY, "response": text}
        reply = packed.call("POST", "/cache/put", asked)
        refused(reply, 400, "BAD_REQUEST", "response: ", "half of a surrogate pair", "as body")


@pytest.mark.parametrize("text", HALVES)
def test_as_body_it_is_kept_byte_for_byte(api: Api, packed: Api, text: bytes) -> None:
    policy = api.policy()
    packed.put(policy, exact_key=KEY, body=text, media_type="application/json")
    assert packed.lookup(policy, exact_key=KEY)["body"] == text


def test_half_a_pair_elsewhere_is_told_as_such(nowhere: Api) -> None:
    reply = put(nowhere, rb'"response":"fine \ufffd","prompt_text":"\ud800 text"')
    message = refused(reply, 400, "BAD_REQUEST", "body: ", "half of a surrogate pair")
    assert "response" not in message


def test_nothing_else_is_taken_for_half_a_pair(nowhere: Api) -> None:
    for text in (rb'"\\ud800', rb'"\ud83d\ude00', rb'"\\\\ud800x'):
        message = refused(put(nowhere, b'"response":' + text), 400, "BAD_REQUEST", "body: ")
        assert "surrogate" not in message
