"""Cases 44 to 50: nobody gets what is another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.behaviours.stack import proxy_settings, stack, vector
from tests.proxy.rig import started
from tests.servers import RawServer

if TYPE_CHECKING:
    from tests.behaviours.stack import Stack

RESET, PARAPHRASE = "How do I reset it?", "How is it reset?"


def near(run: Stack) -> None:
    run.provider.vectors |= {RESET: vector(1.0), PARAPHRASE: vector(0.97)}


@pytest.mark.case(44)
async def test_each_key_has_its_own_answers_unless_the_policy_shares(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        await run.expect("MISS", RESET)
        await run.expect("MISS", RESET, key="bob")
        await run.expect("MISS", PARAPHRASE, key="carol")
        await run.policy(sharing="shared")
        await run.expect("MISS", RESET)  # under another scope than before
        await run.expect("MISS", PARAPHRASE, key="dave")  # has shown nothing yet
        await run.expect("HIT exact", RESET, key="dave")
        await run.expect("HIT exact", PARAPHRASE, key="dave")


@pytest.mark.case(44)
async def test_a_shared_answer_is_found_by_meaning_across_keys(database_url: str) -> None:
    policy = {"sharing": "shared"}
    async with stack(database_url, policy, credential_proof_seconds=0) as run:
        near(run)
        await run.expect("MISS", RESET)
        await run.expect("HIT exact", RESET, key="dave")
        await run.expect("HIT semantic", PARAPHRASE, key="carol")


@pytest.mark.case(45)
@pytest.mark.case(50)
@pytest.mark.case(20)
async def test_a_header_may_tell_tenants_apart_in_both_tiers(database_url: str) -> None:
    policy = {"sharing": "shared", "scope_headers": ["x-tenant"]}
    async with stack(database_url, policy, credential_proof_seconds=0) as run:
        near(run)
        acme, globex = [("x-tenant", "acme")], [("x-tenant", "globex")]
        first = await run.expect("MISS", RESET, headers=acme)
        other = await run.expect("MISS", PARAPHRASE, headers=globex)
        assert (await run.expect("HIT semantic", PARAPHRASE, headers=acme)).body == first.body
        assert (await run.expect("HIT exact", PARAPHRASE, headers=globex)).body == other.body
        await run.expect("MISS", RESET)


@pytest.mark.case(46)
async def test_two_policies_are_two_unless_one_rules_both(database_url: str) -> None:
    async with stack(database_url, {"applies_to": "model:a"}) as run:
        await run.policy("q", applies_to="model:b")
        await run.expect("MISS", model="a")
        await run.expect("MISS", model="b")
        await run.policy("r", priority=1)
        await run.expect("MISS", model="a")
        await run.expect("HIT exact", model="a")


@pytest.mark.case(47)
async def test_two_upstreams_on_one_store_do_not_meet(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        first = await run.expect("MISS", RESET)
        async with RawServer(run.upstream.script) as other:
            async with started(proxy_settings(run, upstream=other.url)) as url:
                second = await run.expect("MISS", RESET, url=url)
                await run.expect("HIT exact", RESET, url=url)
            same = proxy_settings(run, upstream=other.url, upstream_name=_name(run))
            async with started(same) as url:
                assert (await run.expect("HIT exact", RESET, url=url)).body == first.body
        assert first.body != second.body


def _name(run: Stack) -> str:
    return proxy_settings(run).upstream_name
