"""How a hit is replayed, by policy: at once or paced, with its usage or without."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc import wire
from cachesvc.core.policy import Policy
from cachesvc.proxy.request import Reply, Whole
from tests.proxy.rig import PATH, STREAM, chat_body, completion, events, eventually, rig
from tests.servers import ask, calling, request

if TYPE_CHECKING:
    from collections.abc import MutableMapping

WHOLE = events("a", "b", "c", "d")
PACED = Policy(replay="paced")


def hit(body: bytes, media_type: str = STREAM, **fields: Any) -> wire.LookupReply:
    return wire.LookupReply(
        hit=True,
        tier="exact",
        reason="exact",
        body=body,
        media_type=media_type,
        entry_id="e",
        age_seconds=1,
        **fields,
    )


async def test_a_paced_replay_is_the_same_bytes_over_the_time_the_upstream_took() -> None:
    async with rig(policy=PACED) as proxy, calling(proxy.url) as caller:
        proxy.service.reply = hit(WHOLE, upstream_ms=500.0)
        await caller.send(request("POST", PATH, proxy.headers, chat_body(stream=True)))
        head = await caller.head()
        assert b"HIT" in head
        first = await caller.reader.readuntil(b"\n\n")
        began = time.monotonic()
        rest = await caller.reader.readexactly(len(WHOLE) - len(first))
        # Five events: four pauses of a tenth of a second lie between the first and the last.
        assert time.monotonic() - began >= 0.35
        assert first + rest == WHOLE


@pytest.mark.parametrize(
    ("policy", "reply"),
    [
        (Policy(), hit(WHOLE, upstream_ms=60_000.0)),
        (PACED, hit(WHOLE)),
        (PACED, hit(completion(), "application/json", upstream_ms=60_000.0)),
    ],
)
async def test_everything_else_is_replayed_at_once(policy: Policy, reply: wire.LookupReply) -> None:
    async with rig(policy=policy) as proxy:
        proxy.service.reply = reply
        async with asyncio.timeout(5):
            got = await proxy.chat(stream=True)
        assert got.body == reply.body


async def test_a_caller_may_leave_a_paced_replay() -> None:
    async with rig(policy=PACED) as proxy:
        proxy.service.reply = hit(WHOLE, upstream_ms=9_000.0)
        async with calling(proxy.url) as caller:
            await caller.send(request("POST", PATH, proxy.headers, chat_body(stream=True)))
            await caller.reader.readuntil(b"\n\n")
        # The rig's end would wait for a handler that goes on.
        assert (await proxy.metrics())['cachesvc_fail_open_total{cause="bug"}'] == 0


async def test_usage_is_replayed_as_stored_unless_the_policy_says_zero() -> None:
    body = completion()
    for wanted, policy in (((7, 9), Policy()), ((0, 0), Policy(usage_on_hit="zero"))):
        async with rig(policy=policy) as proxy:
            proxy.service.reply = hit(body, "application/json")
            got = await proxy.chat()
            usage = json.loads(got.body)["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == wanted
            same = {**json.loads(got.body), "usage": None}
            assert same == {**json.loads(body), "usage": None}


async def test_a_retry_of_an_sdk_is_told_to_the_service_and_a_first_try_never_is() -> None:
    async with rig() as proxy:
        retried = [("x-stainless-retry-count", "1")]
        await proxy.chat("first came elsewhere", headers=retried)
        await proxy.chat("asked", headers=[("x-stainless-retry-count", "0")])
        await proxy.chat("asked", headers=retried)
        await proxy.chat("asked")
        await proxy.chat("another", headers=[("x-stainless-retry-count", "x")])
        assert [bool(lookup.retry) for lookup in proxy.service.lookups] == [
            *(False, False, True, False, False)
        ]


async def test_a_retry_that_the_service_never_sees_is_counted_once() -> None:
    skip = ("x-higress-skip-ai-cache", "on")
    async with rig() as proxy:
        for count in ("0", "1", "2"):
            await proxy.chat("asked", headers=[skip, ("x-stainless-retry-count", count)])
        sample = 'cachesvc_lookups_total{outcome="bypass",policy="p",reason="caller_skip",tier=""}'
        found = await proxy.metrics()
        assert found[sample] == 1
        await eventually(lambda: len(proxy.upstream.seen) == 3)


async def test_a_request_whose_answer_the_provider_keeps_is_not_cached() -> None:
    body = json.dumps({"model": "m", "input": "hi"}).encode()
    async with rig() as proxy:
        for _ in range(2):
            got = await ask(proxy.url, "POST", "/v1/responses", proxy.headers, body)
            assert got["x-ai-cache-status"] == "BYPASS"
            assert got["cache-status"] == "cachesvc; fwd=bypass; fwd-status=200; detail=stateful"
        assert (len(proxy.upstream.seen), proxy.service.lookups) == (2, [])


PIECES = st.lists(st.sampled_from([b"data: x", b"\n", b"\r", b"\n\n", b"\r\n", b"\x00", b": c"]))


@given(body=PIECES.map(b"".join) | st.binary(max_size=64))
def test_a_paced_replay_is_the_identity_on_any_bytes(body: bytes) -> None:
    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(bytes(message.get("body", b"")))

    async def replay() -> None:
        await Reply({}, send).paced(Whole(200, (), body, paced_seconds=1e-9))

    asyncio.run(replay())
    assert b"".join(sent) == body
