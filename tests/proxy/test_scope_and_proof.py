"""Who shares answers with whom, and who must first show that the upstream lets it in."""

from __future__ import annotations

import pytest

from cachesvc.core.policy import Policy
from cachesvc.core.scope import scope_of
from cachesvc.proxy.proofs import Proofs
from tests.proxy.rig import SECRET, Rig, rig
from tests.servers import answer

ALICE = [("authorization", "Bearer alice")]
BOB = [("authorization", "Bearer bob")]
SHARED = Policy(sharing="shared")


async def _status(proxy: Rig, *headers: tuple[str, str]) -> str | None:
    proxy.headers = list(headers)
    return (await proxy.chat())["x-ai-cache-status"]


async def test_by_default_one_credential_never_gets_anothers_answer() -> None:
    async with rig(embed=True) as proxy:
        assert await _status(proxy, *ALICE) == "MISS"
        await proxy.kept(1)
        assert await _status(proxy, *BOB) == "MISS"
        await proxy.kept(2)
        assert await _status(proxy) == "MISS"
        await proxy.kept(3)
        assert await _status(proxy, *ALICE) == "HIT"
        scopes = [put.scope for put in proxy.service.puts]
        assert len(set(scopes)) == 3
        assert scopes[2] == "anonymous"
        headers = {"authorization": ["Bearer alice"]}
        assert scopes[0] == scope_of(headers, Policy(), SECRET.encode())


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
async def test_every_kind_of_credential_counts(name: str) -> None:
    async with rig() as proxy:
        assert await _status(proxy, (name, "one")) == "MISS"
        await proxy.kept(1)
        assert await _status(proxy, (name, "two")) == "MISS"
        await proxy.kept(2)
        assert await _status(proxy, (name, "one")) == "HIT"


async def test_a_tenant_header_keeps_tenants_of_one_credential_apart() -> None:
    policy = Policy(scope_headers=("X-Tenant",))
    async with rig(policy=policy) as proxy:
        assert await _status(proxy, *ALICE, ("x-tenant", "acme")) == "MISS"
        await proxy.kept(1)
        assert await _status(proxy, *ALICE, ("x-tenant", "globex")) == "MISS"
        assert await _status(proxy, *ALICE) == "MISS"
        await proxy.kept(3)
        assert await _status(proxy, *ALICE, ("x-tenant", "acme")) == "HIT"


async def test_a_policy_of_one_key_rules_that_key_alone() -> None:
    alice = scope_of({"authorization": ["Bearer alice"]}, Policy(), SECRET.encode())
    async with rig(policy=Policy(applies_to=f"api_key:{alice}")) as proxy:
        assert await _status(proxy, *ALICE) == "MISS"
        assert await _status(proxy, *BOB) is None


async def test_sharing_needs_a_proof_of_each_credential_first() -> None:
    async with rig(policy=SHARED) as proxy:
        assert await _status(proxy, *ALICE) == "MISS"
        await proxy.kept(1)
        proxy.headers = BOB
        first = await proxy.chat()
        assert first["x-ai-cache-status"] == "MISS"
        said = "cachesvc; fwd=miss; fwd-status=200; detail=credential_unproven"
        assert first["cache-status"] == said
        await proxy.kept(2)  # unproven is no reason to keep nothing
        assert proxy.service.puts[0].scope == proxy.service.puts[1].scope == "shared"
        assert await _status(proxy, *BOB) == "HIT"
        assert await _status(proxy, *ALICE) == "HIT"
        assert await _status(proxy) == "MISS"  # none at all is one, too
        assert await _status(proxy) == "HIT"


async def test_a_credential_that_the_upstream_refuses_gets_no_hit() -> None:
    async with rig(policy=SHARED) as proxy:
        assert await _status(proxy, *ALICE) == "MISS"
        await proxy.kept(1)

        async def script(seen: object, wire: object) -> None:
            raw = answer(b'{"error": {}}', status="401 Unauthorized")
            await wire.send(raw)  # type: ignore[attr-defined]

        proxy.upstream.script = script
        for _ in range(3):
            proxy.headers = BOB
            assert (await proxy.chat()).status == 401
        # Alice was let in before; a refusal takes that away.
        assert await _status(proxy, *ALICE) == "HIT"
        proxy.headers = ALICE
        assert (await proxy.chat(headers=[("cache-control", "no-cache")])).status == 401
        assert (await proxy.chat()).status == 401


async def test_without_proofs_everyone_shares_at_once() -> None:
    async with rig(policy=SHARED, credential_proof_seconds=0) as proxy:
        assert await _status(proxy, *ALICE) == "MISS"
        await proxy.kept(1)
        assert await _status(proxy, *BOB) == "HIT"
        assert await _status(proxy) == "HIT"


def test_a_proof_ends_with_its_time_and_memory_is_bounded() -> None:
    now = 1000.0
    proofs = Proofs(60, clock=lambda: now, most=3)

    def missing(name: str) -> bool:
        return proofs.missing(SHARED, lambda: name)

    def never() -> str:
        pytest.fail("a credential was hashed for nothing")

    assert missing("a")
    assert not proofs.missing(Policy(), never)
    assert not Proofs(0).missing(SHARED, never)
    proofs.learn("a", 200)
    now += 60
    assert not missing("a")
    now += 0.1
    assert missing("a")
    for name in "abcd":
        proofs.learn(name, 204)
    assert [name for name in "abcd" if missing(name)] == ["a"]
    for status in (199, 302, 429, 500):
        proofs.learn("x", status)
    assert missing("x")
    for status in (401, 403):
        proofs.learn("d", 200)
        proofs.learn("d", status)
        assert missing("d")
