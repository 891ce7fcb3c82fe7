"""Cases 43 to 50: nobody gets what is another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.behaviours.stack import (
    PARAPHRASE,
    RESET,
    near,
    proxy_settings,
    stack,
)
from tests.proxy.rig import started
from tests.servers import RawServer

if TYPE_CHECKING:
    from tests.behaviours.stack import Stack


@pytest.mark.case(44)
@pytest.mark.case(50)
async def test_each_key_has_its_own_answers_unless_the_policy_shares(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        own = {key: (await run.expect("MISS", RESET, key=key)).body for key in ("alice", "bob")}
        await run.expect("MISS", PARAPHRASE, key="carol")
        for key, body in own.items():
            assert (await run.expect("HIT exact", RESET, key=key)).body == body
            assert (await run.expect("HIT semantic", PARAPHRASE, key=key)).body == body
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


@pytest.mark.case(44)
async def test_the_same_key_in_another_header_is_another_caller(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        forms = [("authorization", "Bearer k"), ("x-api-key", "k"), ("api-key", "k")]
        for form in forms:
            await run.expect("MISS", RESET, key=None, headers=[form])
        await run.expect("MISS", PARAPHRASE, key=None, headers=forms)
        await run.expect("MISS", PARAPHRASE, key=None)
        for form in forms:
            await run.expect("HIT exact", RESET, key=None, headers=[form])


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


@pytest.mark.case(43)
@pytest.mark.case(46)
@pytest.mark.case(21)
async def test_the_very_same_request_under_another_policy_finds_only_its_own(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        first = await run.expect("MISS", RESET)
        await run.policy("q", priority=1)
        second = await run.expect("MISS", PARAPHRASE)
        assert (await run.expect("HIT semantic", RESET)).body == second.body
        await run.policy("q", priority=-1)
        assert (await run.expect("HIT exact", RESET)).body == first.body
        assert (await run.expect("HIT semantic", PARAPHRASE)).body == first.body
        await run.policy("q", priority=1)
        assert (await run.expect("HIT exact", PARAPHRASE)).body == second.body


@pytest.mark.case(46)
async def test_two_proxies_under_one_policy_share_its_answers(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        first = await run.expect("MISS", RESET)
        async with started(proxy_settings(run)) as url:
            assert (await run.expect("HIT exact", RESET, url=url)).body == first.body
            assert (await run.expect("HIT semantic", PARAPHRASE, url=url)).body == first.body
        async with started(proxy_settings(run, scope_secret="another secret")) as url:
            await run.expect("MISS", RESET, url=url)


@pytest.mark.case(47)
@pytest.mark.case(48)
async def test_two_upstreams_on_one_store_do_not_meet(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        first = await run.expect("MISS", RESET)
        async with RawServer(run.upstream.script) as other:
            async with started(proxy_settings(run, upstream=other.url)) as url:
                second = await run.expect("MISS", PARAPHRASE, url=url)
                await run.expect("HIT exact", PARAPHRASE, url=url)
                assert (await run.expect("HIT semantic", RESET, url=url)).body == second.body
            assert (await run.expect("HIT exact", RESET)).body == first.body
            same = proxy_settings(run, upstream=other.url, upstream_name=_name(run))
            async with started(same) as url:
                assert (await run.expect("HIT exact", RESET, url=url)).body == first.body
        assert first.body != second.body


def _name(run: Stack) -> str:
    return proxy_settings(run).upstream_name
