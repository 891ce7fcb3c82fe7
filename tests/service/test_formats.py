"""Both formats crossed: what is put in one is read in the other, byte for byte."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.service.serving import JSON, KEY, MESSAGEPACK, Api, decoded

if TYPE_CHECKING:
    import httpx

ODD = [
    pytest.param(b'{ "a" :\t1 ,\r\n "b":[ ] }', id="odd-spacing"),
    pytest.param(b'{"a":1,"a":2}', id="duplicate-keys"),
    pytest.param(b'{"n":1e400,"m":-0.0,"k":1E+2,"big":12345678901234567890123}', id="numbers"),
    pytest.param(b'{"z":1,"a":{"y":1,"b":2}}', id="key-order"),
    pytest.param(b'{"s":"\\u0041\\/\\n\\u0000\\ud83d\\ude00"}', id="escapes"),
    pytest.param('{"s":"é 漢字 \U0001f600"}'.encode(), id="utf-8"),
    pytest.param(b'{"content":null}', id="null-inside"),
    pytest.param(b'"just text"', id="string"),
    pytest.param(b"[" * 200 + b"]" * 200, id="deep"),
    pytest.param(b"false", id="false"),
]


def spliced(reply: httpx.Response) -> bytes:
    """The JSON text of `response` as it stands in a reply."""
    if reply.headers["content-type"] == MESSAGEPACK:
        text = decoded(reply)["response"]
        assert isinstance(text, bytes)
        return text
    return bytes(msgspec.json.decode(reply.content, type=dict[str, msgspec.Raw])["response"])


def put_response(api: Api, policy: str, text: bytes) -> None:
    if api.format == MESSAGEPACK:
        body = msgspec.msgpack.encode({"policy_id": policy, "exact_key": KEY, "response": text})
    else:
        body = b'{"policy_id":"%s","exact_key":"%s","response": %s }' % (
            policy.encode(),
            KEY.encode(),
            text,
        )
    assert api.ok("POST", "/cache/put", body)["stored"] is True


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("written", [JSON, MESSAGEPACK])
def test_a_response_comes_back_byte_for_byte_in_both_formats(
    api: Api, packed: Api, text: bytes, written: str
) -> None:
    policy = api.policy()
    put_response(api if written == JSON else packed, policy, text)
    for reader in (api, packed):
        asked = {"policy_id": policy, "exact_key": KEY}
        reply = reader.call("POST", "/cache/lookup", asked)
        assert reply.headers["content-type"] == reader.format
        assert spliced(reply) == text
        assert "body" not in decoded_or_text(reply)


def decoded_or_text(reply: httpx.Response) -> Any:
    """1e400 is no number to msgspec; then the text itself is searched."""
    try:
        return decoded(reply)
    except msgspec.ValidationError:
        return reply.text.split('"')


@pytest.mark.parametrize("written", [JSON, MESSAGEPACK])
def test_a_body_of_arbitrary_bytes_comes_back_in_both_formats(
    api: Api, packed: Api, written: str
) -> None:
    policy, body = api.policy(), bytes(range(256)) * 3
    writer = api if written == JSON else packed
    writer.put(policy, exact_key=KEY, body=body, media_type="text/event-stream")
    from_json = api.lookup(policy, exact_key=KEY)
    assert base64.b64decode(from_json["body"], validate=True) == body
    from_packed = packed.lookup(policy, exact_key=KEY)
    assert from_packed["body"] == body
    for reply in (from_json, from_packed):
        assert reply["media_type"] == "text/event-stream"
        assert "response" not in reply


def test_an_empty_body_is_an_answer(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, body=b"", media_type="text/plain")
    assert api.lookup(policy, exact_key=KEY)["body"] == ""


def test_a_vector_is_the_same_as_numbers_as_base64_and_as_a_bin(api: Api, packed: Api) -> None:
    policy, numbers = api.policy(), [0.1, -0.2, 0.3]
    packed_numbers = struct.pack("<3f", *numbers)
    packed.put(policy, embedding=packed_numbers)
    as_text = base64.b64encode(packed_numbers).decode()
    for reader, vector in ((api, numbers), (api, as_text), (packed, numbers)):
        assert reader.lookup(policy, embedding=vector)["similarity"] == 1.0


@pytest.mark.parametrize(
    ("accept", "sent", "got"),
    [
        ("application/msgpack", JSON, MESSAGEPACK),
        ("application/json", MESSAGEPACK, JSON),
        ("*/*", MESSAGEPACK, MESSAGEPACK),
        ("*/*", JSON, JSON),
        ("application/*", MESSAGEPACK, MESSAGEPACK),
        ("text/html", MESSAGEPACK, JSON),
        ("application/json;q=0.5, application/msgpack", JSON, MESSAGEPACK),
        ("application/msgpack;q=0.1, application/json;q=0.9", MESSAGEPACK, JSON),
        ("application/msgpack;q=0, */*", JSON, JSON),
        ("Application/MsgPack; v=1", JSON, MESSAGEPACK),
        ("application/msgpack;q=what", JSON, JSON),
    ],
)
def test_accept_chooses_the_format_of_the_reply(
    api: Api, packed: Api, accept: str, sent: str, got: str
) -> None:
    caller = api if sent == JSON else packed
    for policy in (api.policy(), "there-is-none"):  # errors too
        body = {"policy_id": policy, "exact_key": KEY}
        reply = caller.call("POST", "/cache/lookup", body, accept=accept)
        assert reply.headers["content-type"] == got
        assert decoded(reply).keys() & {"hit", "error"}


def test_parameters_of_the_content_type_are_allowed(api: Api) -> None:
    body = msgspec.json.encode({"policy_id": api.policy(), "exact_key": KEY})
    reply = api.call("POST", "/cache/lookup", body, content_type="Application/JSON; charset=utf-8")
    assert reply.status_code == 200


def test_a_policy_travels_in_messagepack_too(api: Api, packed: Api) -> None:
    saved = packed.ok("PUT", "/policies/packed", {"threshold": 0.5, "name": None})
    assert saved == packed.ok("GET", "/policies/packed", accept=MESSAGEPACK)
    assert saved["threshold"] == 0.5
    assert saved["name"] == "packed"
    assert saved == api.ok("GET", "/policies/packed")


def test_an_entry_is_shown_in_both_formats(api: Api, packed: Api) -> None:
    policy = api.policy()
    put_response(api, policy, b'{"a" :1}')
    entry = api.lookup(policy, exact_key=KEY)["entry_id"]
    for reader, accept in ((api, JSON), (packed, MESSAGEPACK)):
        assert spliced(reader.call("GET", f"/cache/entries/{entry}", accept=accept)) == b'{"a" :1}'
