"""The LiteLLM recipe, with the real LiteLLM proxy: behind cachesvc, and in front of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.deploy.litellm import ABSENT, MASTER_KEY, PROGRAM, PROVIDER_KEY, litellm
from tests.deploy.processes import DEPLOY
from tests.deploy.provider import MODEL, Provider
from tests.end_to_end.stack import Up, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=ABSENT)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(scope="module")
def behind(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """cachesvc, with LiteLLM behind it."""
    folder = tmp_path_factory.mktemp("behind")
    changes = {"https://api.openai.com": provider.url}
    with (
        litellm(folder / "litellm", "behind.yaml", changes) as url,
        Up(folder / "data", "--upstream", url) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def cache(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """cachesvc, which LiteLLM stands in front of, with the policy that the recipe says."""
    folder = tmp_path_factory.mktemp("cache")
    with Up(folder / "data", "--upstream", provider.url) as running:
        policy = {"scope_headers": _scope_headers()}
        saved = httpx.put(f"{running.service}/policies/default", json=policy, trust_env=False)
        assert saved.status_code == 200
        yield running


@pytest.fixture(scope="module")
def front(cache: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LiteLLM, with cachesvc behind it."""
    folder = tmp_path_factory.mktemp("front")
    changes = {"http://127.0.0.1:8701": cache.proxy}
    with litellm(folder / "litellm", "in-front.yaml", changes, two_keys=True) as url:
        yield url


def _scope_headers() -> list[str]:
    """As the recipe's own command sets them."""
    recipe = (DEPLOY / "litellm" / "in-front.yaml").read_text("utf-8")
    (said,) = [line for line in recipe.splitlines() if "scope_headers=" in line]
    headers: list[str] = json.loads(said.partition("scope_headers=")[2].rstrip("'"))
    return headers


def ask(
    url: str,
    question: str,
    key: str,
    *,
    stream: bool = False,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    reply = httpx.post(
        f"{url}/v1/chat/completions",
        json={
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "stream": stream,
        },
        headers={"authorization": f"Bearer {key}", **(headers or {})},
        timeout=30,
        trust_env=False,
    )
    assert reply.status_code == 200, reply.text
    return reply


def told(reply: httpx.Response) -> str:
    """The words of an answer, however it came."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return str(reply.json()["choices"][0]["message"]["content"])
    frames = [ln.removeprefix("data: ") for ln in reply.text.splitlines() if ln.startswith("data:")]
    assert frames[-1] == "[DONE]"
    chunks: list[dict[str, Any]] = [json.loads(frame) for frame in frames[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def asked_and_kept(url: str, cache: Up, question: str, key: str, **more: Any) -> httpx.Response:
    """The first answer to a question, once the cache has it."""
    entries = cache.entries()
    reply = ask(url, question, key, **more)
    eventually(lambda: cache.entries() == entries + 1)
    return reply


@pytest.mark.parametrize("stream", [False, True])
def test_behind_the_second_answer_is_the_first_byte_for_byte(
    behind: Up, provider: Provider, stream: bool
) -> None:
    question = f"Is LiteLLM asked again, stream {stream}?"
    missed = asked_and_kept(behind.proxy, behind, question, MASTER_KEY, stream=stream)
    hit = ask(behind.proxy, question, MASTER_KEY, stream=stream)
    assert [r.headers["x-ai-cache-status"] for r in (missed, hit)] == ["MISS", "HIT"]
    assert hit.content == missed.content
    assert question in told(hit)
    assert "x-litellm-call-id" in missed.headers
    assert "x-litellm-call-id" not in hit.headers
    assert provider.times(question) == 1
    assert provider.asked[-1].headers["authorization"] == f"Bearer {PROVIDER_KEY}"


def test_behind_a_key_that_litellm_refuses_gets_its_refusal_and_no_answer_of_another(
    behind: Up, provider: Provider
) -> None:
    question = "Is a wrong key refused?"
    asked_and_kept(behind.proxy, behind, question, MASTER_KEY)
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "stream": False}
    for _ in range(2):
        reply = httpx.post(
            f"{behind.proxy}/v1/chat/completions",
            json=body,
            headers={"authorization": "Bearer sk-nobody"},
            timeout=30,
            trust_env=False,
        )
        assert reply.status_code in (400, 401)
        assert reply.headers["x-ai-cache-status"] == "MISS"
    assert provider.times(question) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_in_front_the_second_call_does_not_reach_the_provider(
    front: str, cache: Up, provider: Provider, stream: bool
) -> None:
    question = f"Is the provider asked again, stream {stream}?"
    missed = asked_and_kept(front, cache, question, "sk-alice", stream=stream)
    hit = ask(front, question, "sk-alice", stream=stream)
    assert told(hit) == told(missed)
    assert provider.times(question) == 1
    statuses = [r.headers["llm_provider-x-ai-cache-status"] for r in (missed, hit)]
    assert statuses == ["MISS", "HIT"]


def test_in_front_two_users_of_one_key_do_not_share(
    front: str, cache: Up, provider: Provider
) -> None:
    question = "What do I, the user, owe?"
    first = asked_and_kept(front, cache, question, "sk-alice", headers={"x-user-id": "alice"})
    other = asked_and_kept(front, cache, question, "sk-alice", headers={"x-user-id": "carol"})
    again = ask(front, question, "sk-alice", headers={"x-user-id": "alice"})
    assert told(first) != told(other)
    assert told(again) == told(first)
    assert provider.times(question) == 2
    # Both came with the one credential of LiteLLM: nothing but the headers tells them apart.
    keys = {a.headers["authorization"] for a in provider.asked if a.question == question}
    assert keys == {f"Bearer {PROVIDER_KEY}"}


def test_in_front_a_key_cannot_pose_as_another(front: str, cache: Up, provider: Provider) -> None:
    question = "What does this key owe?"
    asked_and_kept(front, cache, question, "sk-alice", headers={"x-user-id": "alice"})
    name = "x-litellm-user_api_key_hash"
    hash_of_alice = provider.asked[-1].headers[name]
    posing = {"x-user-id": "alice", name: hash_of_alice}
    stolen = asked_and_kept(front, cache, question, "sk-bob", headers=posing)
    assert stolen.headers["llm_provider-x-ai-cache-status"] == "MISS"
    assert provider.times(question) == 2
    assert provider.asked[-1].headers[name] != hash_of_alice


def test_in_front_callers_leave_the_cache_out_by_a_header_that_litellm_passes_on(
    front: str, cache: Up, provider: Provider
) -> None:
    question = "Is the cache left out?"
    asked_and_kept(front, cache, question, "sk-alice")
    skipped = ask(front, question, "sk-alice", headers={"x-higress-skip-ai-cache": "on"})
    assert skipped.headers["llm_provider-x-ai-cache-status"] == "BYPASS"
    # LiteLLM keeps Cache-Control to itself.
    ignored = ask(front, question, "sk-alice", headers={"cache-control": "no-cache"})
    assert ignored.headers["llm_provider-x-ai-cache-status"] == "HIT"
    assert provider.times(question) == 2
