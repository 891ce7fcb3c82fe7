"""A policy's `extract`, from the request to what the service is asked and given."""

from __future__ import annotations

from typing import Any

from cachesvc.core.policy import Policy
from tests.proxy.rig import eventually, rig

USERS = "$.messages[?@.role=='user'].content"


def talk(*texts: str, system: str = "Be brief.") -> list[dict[str, Any]]:
    """A conversation of a user, answered with "ok" each time but the last."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return messages[:-1]


async def test_what_it_finds_is_compared_and_all_else_must_be_equal() -> None:
    policy = Policy(extract=USERS, window=1000)
    async with rig(policy=policy, embed=True) as proxy:
        first, second = "I lost my card.\nWhat now?", "My card is lost.\nAnd now?"
        for text in (first, second):
            proxy.provider.vectors[text] = [1.0, 0, 0, 0, 0, 0, 0, 0]
        await proxy.chat(messages=talk("I lost my card.", "What now?"))
        await proxy.kept(1)
        assert proxy.service.puts[0].prompt_text == first
        again = await proxy.chat(messages=talk("My card is lost.", "And now?"))
        assert again["x-ai-cache-tier"] == "semantic"
        other = await proxy.chat(messages=talk("My card is lost.", "And now?", system="Be kind."))
        assert other["x-ai-cache-status"] == "MISS"


async def test_what_it_finds_beside_the_conversation_ends_the_semantic_tier() -> None:
    """Else a question to one model could be answered by another."""
    async with rig(policy=Policy(extract="$.model"), embed=True) as proxy:
        for model in ("m", "n"):
            assert (await proxy.chat("Hello", model=model))["x-ai-cache-status"] == "MISS"
        await proxy.kept(2)
        assert proxy.provider.texts == []
        assert all(put.embedding is None for put in proxy.service.puts)
        assert (await proxy.chat("Hello", model="n"))["x-ai-cache-tier"] == "exact"


async def test_another_expression_in_the_next_list_is_another_partition() -> None:
    async with rig(policy=Policy(extract=USERS), embed=True) as proxy:
        await proxy.chat("Hello")
        await proxy.kept(1)
        proxy.service.policies["p"] = Policy(extract="$.messages[-1].content")
        before = proxy.service.list_calls
        await eventually(lambda: proxy.service.list_calls >= before + 2)
        assert (await proxy.chat("Hello", seed=1))["x-ai-cache-status"] == "MISS"
        await proxy.kept(2)
        assert len({put.partition for put in proxy.service.puts}) == 2
