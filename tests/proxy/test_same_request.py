"""Which requests are the same request, seen from outside."""

from __future__ import annotations

import pytest

from tests.proxy.rig import PATH, Rig, always, chat_body, completion, rig
from tests.servers import answer, ask

PLAIN = chat_body(temperature=0.2)


async def _status(proxy: Rig, body: bytes, headers: dict[str, str], target: str) -> str | None:
    sent = [*proxy.headers, *headers.items()]
    return (await ask(proxy.url, "POST", target, sent, body))["x-ai-cache-status"]


@pytest.mark.parametrize(
    ("body", "headers", "target"),
    [
        pytest.param(PLAIN, {"openai-organization": "o2"}, PATH, id="organization"),
        pytest.param(PLAIN, {"openai-project": "p"}, PATH, id="project"),
        pytest.param(PLAIN, {"openai-beta": "assistants=v2"}, PATH, id="beta"),
        pytest.param(PLAIN, {"x-variant": "b"}, PATH, id="an operator's header"),
        pytest.param(PLAIN, {}, f"{PATH}?api-version=2", id="query"),
        pytest.param(chat_body(temperature=0.7), {}, PATH, id="temperature"),
        pytest.param(chat_body(temperature=0.2, seed=1), {}, PATH, id="seed"),
        pytest.param(chat_body(temperature=0.2, stop=None), {}, PATH, id="explicit null"),
        pytest.param(chat_body(temperature=0.2, model="n"), {}, PATH, id="model"),
        pytest.param(chat_body("hello", temperature=0.2), {}, PATH, id="letter case"),
    ],
)
async def test_another_request_is_a_miss(body: bytes, headers: dict[str, str], target: str) -> None:
    async with rig(key_headers=("X-Variant",)) as proxy:
        assert await _status(proxy, PLAIN, {}, PATH) == "MISS"
        await proxy.kept(1)
        assert await _status(proxy, body, headers, target) == "MISS"
        await proxy.kept(2)
        assert await _status(proxy, body, headers, target) == "HIT"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(PLAIN, {"x-stainless-retry-count": "1", "user-agent": "x"}, id="headers"),
        pytest.param(PLAIN, {"x-request-id": "r", "accept-encoding": "gzip"}, id="more headers"),
        pytest.param(chat_body(temperature=0.2000001), {}, id="float noise"),
        pytest.param(chat_body(temperature=0.2, stream=False), {}, id="no stream, said"),
        pytest.param(PLAIN.replace(b" ", b"\n  "), {}, id="white space"),
        pytest.param(
            b'{"temperature":0.2,"messages":[{"content":"Hell\\u006f","role":"user"}],"model":"m"}',
            {},
            id="order and escapes",
        ),
    ],
)
async def test_the_same_request_is_a_hit(body: bytes, headers: dict[str, str]) -> None:
    async with rig() as proxy:
        assert await _status(proxy, PLAIN, {}, PATH) == "MISS"
        await proxy.kept(1)
        assert await _status(proxy, body, headers, PATH) == "HIT"


async def test_a_renamed_upstream_is_another_and_a_common_name_is_one() -> None:
    async with rig(upstream_name="openai") as one:
        await one.chat()
        await one.kept(1)
        key = one.service.puts[0].exact_key
    async with rig(upstream_name="openai") as two, rig() as three:
        for proxy in (two, three):
            await proxy.chat()
            await proxy.kept(1)
        assert two.service.puts[0].exact_key == key
        assert three.service.puts[0].exact_key != key


async def test_a_header_that_connection_names_is_in_no_key_as_it_is_in_no_call() -> None:
    beta, hop = ("openai-beta", "assistants=v2"), ("connection", "keep-alive, OpenAI-Beta")
    async with rig() as proxy:
        with_beta = await proxy.chat(headers=[beta])
        await proxy.kept(1)
        dropped = await proxy.chat(headers=[beta, hop])
        await proxy.kept(2)
        assert dropped["x-ai-cache-status"] == "MISS"
        betas = [seen.values("openai-beta") for seen in proxy.upstream.seen]
        assert betas == [["assistants=v2"], []]
        assert (await proxy.chat()).body == dropped.body
        assert (await proxy.chat(headers=[beta])).body == with_beta.body


async def test_a_credential_that_connection_names_is_nobodys() -> None:
    async with rig() as proxy:
        await proxy.chat(headers=[("connection", "authorization")])
        await proxy.kept(1)
        assert proxy.upstream.seen[0].values("authorization") == []
        assert proxy.service.puts[0].scope == "anonymous"


async def test_steering_that_connection_names_is_not_heard_as_it_is_not_sent_on() -> None:
    async with rig() as proxy:
        headers = [("cache-control", "only-if-cached"), ("connection", "cache-control")]
        assert (await proxy.chat(headers=headers)).status == 200
        assert proxy.upstream.seen[0].values("cache-control") == []


@pytest.mark.parametrize("path", [PATH, "/v1/files"])
async def test_a_length_that_connection_names_still_frames_the_body(path: str) -> None:
    async with rig(always(answer(completion()))) as proxy:
        hop = [("connection", "content-length")]
        assert (await ask(proxy.url, "POST", path, hop, chat_body())).status == 200
        assert proxy.upstream.seen[0].body == chat_body()
