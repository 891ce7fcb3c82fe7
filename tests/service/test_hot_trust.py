"""Memory answers only while it is known that nothing was missed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

from tests.relay import Relay
from tests.service.serving import KEY, Api, Running, execute, fetch
from tests.service.test_hot import BOUND_SECONDS, VECTOR, answered, from_memory, until_hot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.store.embedded import EmbeddedPostgres

PATIENCE_SECONDS = 20.0
FOREVER = {"hot_ttl_seconds": 60.0}


@pytest.fixture(scope="module")
def relay(module_database_url: str) -> Iterator[Relay]:
    with Relay(module_database_url) as relay:
        yield relay


@pytest.fixture(scope="module")
def b(module_database_url: str, relay: Relay) -> Iterator[Api]:
    """Calls to a replica that hears of changes over a line that can be frozen.

    Ten of its callers may wait for the database at once.
    """
    few = {"listen_url": relay.url, "database_pool_size": 2}
    with Running(module_database_url, {**FOREVER, **few}) as service:
        api = Api(service.url)
        yield api
        api.close()


def test_a_purge_that_was_not_heard_of_is_followed_within_a_second(
    api: Api, b: Api, relay: Relay
) -> None:
    policy_id = api.policy()
    api.put(policy_id, exact_key=KEY, embedding=VECTOR)
    until_hot(b, policy_id, exact_key=KEY)
    until_hot(b, policy_id, "semantic", embedding=VECTOR)
    relay.freeze()
    try:
        api.purge(policy_id=policy_id)
        time.sleep(BOUND_SECONDS)
        before = from_memory(b, "exact")
        for asked in ({"exact_key": KEY}, {"embedding": VECTOR}):
            assert answered(b, policy_id, asked) is None
        assert from_memory(b, "exact") == before
        assert b.metrics()["cachesvc_hot_trusted"] == 0
    finally:
        relay.thaw()
    api.put(policy_id, exact_key=KEY)
    until_hot(b, policy_id, exact_key=KEY)


def test_who_purges_while_nothing_is_heard_has_the_reply_soon_and_no_old_answer(
    b: Api, relay: Relay
) -> None:
    policy_id = b.policy()
    b.put(policy_id, exact_key=KEY)
    until_hot(b, policy_id, exact_key=KEY)
    relay.freeze()
    try:
        started = time.monotonic()
        b.purge(policy_id=policy_id)
        assert answered(b, policy_id, {"exact_key": KEY}) is None
        assert time.monotonic() - started < 5
    finally:
        relay.thaw()


def test_hits_go_on_from_the_database_while_nothing_is_heard(b: Api, relay: Relay) -> None:
    policy_id = b.policy()
    entry = b.put(policy_id, exact_key=KEY)["entry_id"]
    until_hot(b, policy_id, exact_key=KEY)
    relay.freeze()
    try:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert answered(b, policy_id, {"exact_key": KEY}) == entry
    finally:
        relay.thaw()


@contextmanager
def nobody_reads(url: str) -> Iterator[None]:
    """Whatever asks the database for an answer, or for a policy, waits."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url))
        runner.run(
            connection.execute(
                "BEGIN; LOCK TABLE entries, aliases, policies IN ACCESS EXCLUSIVE MODE"
            )
        )
        try:
            yield
        finally:
            runner.run(connection.close())


def test_a_hit_from_memory_asks_the_database_nothing_and_waits_for_nobody_who_does(
    b: Api, module_database_url: str
) -> None:
    policy_id = b.policy()
    b.put(policy_id, exact_key=KEY, embedding=VECTOR)
    until_hot(b, policy_id, exact_key=KEY)
    until_hot(b, policy_id, "semantic", embedding=VECTOR)

    stop, told = threading.Event(), set()

    def asks_the_database() -> None:
        cold = {"policy_id": policy_id, "exact_key": "ef" * 32}
        while not stop.wait(0.05):
            told.add(b.call("POST", "/cache/lookup", cold).status_code)

    hits = 0
    hot: list[dict[str, Any]] = [{"exact_key": KEY}, {"embedding": VECTOR}]
    with ThreadPoolExecutor(16) as others:
        with nobody_reads(module_database_url):
            waiting = [others.submit(asks_the_database) for _ in range(16)]
            for number in range(50):
                hits += answered(b, policy_id, hot[number % 2]) is not None
                stop.wait(0.02)
        stop.set()
    assert not any(each.exception() for each in waiting)
    assert httpx.codes.SERVICE_UNAVAILABLE in told
    # A slow machine may lose the lease for a moment, and get no answer then.
    assert hits >= 25


def test_an_answer_that_is_rehabilitated_is_served_again(api: Api, b: Api) -> None:
    policy_id = api.policy()
    farther = api.put(policy_id, embedding=[1.0, 0.3, 0.0, 0.0], prompt_text="a")["entry_id"]
    nearer = api.put(policy_id, embedding=VECTOR, prompt_text="b")["entry_id"]
    asked = {"embedding": VECTOR}
    api.ok("POST", "/cache/feedback", {"entry_id": nearer, "verdict": "wrong"})
    for replica in (api, b):
        assert until_hot(replica, policy_id, "semantic", **asked)["entry_id"] == farther
    api.ok("POST", "/cache/feedback", {"entry_id": nearer, "verdict": "right"})
    judged = time.monotonic()
    assert answered(api, policy_id, asked) == nearer
    time.sleep(max(0.0, judged + BOUND_SECONDS - time.monotonic()))
    assert answered(b, policy_id, asked) == nearer


def test_a_policy_that_is_known_before_it_is_heard_of_costs_nobody_an_answer(
    b: Api, module_database_url: str
) -> None:
    policy_id = b.policy()
    b.put(policy_id, exact_key=KEY, embedding=VECTOR)
    until_hot(b, policy_id, exact_key=KEY)
    # Nobody is told, as where the notification is late; a put reads the policy.
    execute(
        module_database_url,
        f"UPDATE policies SET revision = revision + 1 WHERE id = '{policy_id}'",
    )
    b.put(policy_id, exact_key="ef" * 32)
    for _ in range(3):
        assert b.lookup(policy_id, exact_key=KEY)["hit"]


def test_no_answer_comes_from_memory_once_the_database_has_been_silent_for_a_second(
    own_server: EmbeddedPostgres,
) -> None:
    with Running(own_server.url, FOREVER) as service:
        api = Api(service.url)
        policy_id = api.policy()
        api.put(policy_id, exact_key=KEY)
        until_hot(api, policy_id, exact_key=KEY)
        (postmaster,) = fetch(own_server.url, "SELECT pg_read_file('postmaster.pid')")[0][
            0
        ].split()[:1]
        backends = fetch(
            own_server.url, "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
        processes = [int(postmaster), *(pid for (pid,) in backends)]
        _signal(processes, signal.SIGSTOP)
        try:
            time.sleep(BOUND_SECONDS)
            for _ in range(3):
                reply = api.call(
                    "POST", "/cache/lookup", {"policy_id": policy_id, "exact_key": KEY}
                )
                assert reply.status_code == httpx.codes.SERVICE_UNAVAILABLE
        finally:
            _signal(processes, signal.SIGCONT)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not api.call(
            "POST", "/cache/lookup", {"policy_id": policy_id, "exact_key": KEY}
        ).is_success:
            assert time.monotonic() < deadline
        until_hot(api, policy_id, exact_key=KEY)
        api.close()


def _signal(processes: list[int], what: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, what)
        except ProcessLookupError:
            continue  # the connection that asked for the list
