"""A part of the cache that fails is left alone, and soon found again, by a clock the test turns."""

from __future__ import annotations

import asyncio

import pytest

from cachesvc.errors import ServiceError, ServiceUnavailable
from cachesvc.proxy.seam import Budget, Circuit, CircuitOpen, DeadlinePassed, within
from tests.proxy.rig import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    """Without jitter: a delay is what it is."""
    return Circuit(clock, jitter=lambda: 0.5)


def fail(circuit: Circuit, error: Exception | None = None) -> None:
    with pytest.raises(ServiceError), circuit.call():
        raise error or ServiceUnavailable("away")


def succeed(circuit: Circuit) -> None:
    with circuit.call():
        pass


def test_five_failures_open_it_and_four_do_not(circuit: Circuit) -> None:
    for _ in range(4):
        fail(circuit)
    assert not circuit.open
    fail(circuit)
    assert circuit.open
    with pytest.raises(CircuitOpen), circuit.call():
        pytest.fail("a call went through")


def test_failures_far_apart_do_not_add_up(circuit: Circuit, clock: Clock) -> None:
    for _ in range(20):
        fail(circuit)
        clock.now += 2.6
    assert not circuit.open


def test_a_service_that_is_rarely_late_keeps_its_hits(circuit: Circuit) -> None:
    for _ in range(100):
        for _ in range(9):
            succeed(circuit)
        fail(circuit)
    assert not circuit.open


def test_a_service_that_dies_after_many_successes_is_left_alone_after_five_calls(
    circuit: Circuit,
) -> None:
    for _ in range(1000):
        succeed(circuit)
    for _ in range(5):
        fail(circuit)
    assert circuit.open


def test_refusals_and_callers_who_leave_tell_nothing_against_it(circuit: Circuit) -> None:
    for _ in range(20):
        fail(circuit, ServiceError("no such policy", status=404))
        with pytest.raises(asyncio.CancelledError), circuit.call(Budget(10)):
            raise asyncio.CancelledError
    assert not circuit.open


def open_it(circuit: Circuit) -> None:
    for _ in range(5):
        fail(circuit)


def test_after_a_second_one_call_tries_and_the_others_still_do_not(
    circuit: Circuit, clock: Clock
) -> None:
    open_it(circuit)
    clock.now += 0.99
    assert not circuit.would_allow()
    clock.now += 0.02
    assert circuit.would_allow()
    with circuit.call():
        assert not circuit.would_allow()
        with pytest.raises(CircuitOpen):
            succeed(circuit)
    assert not circuit.open
    succeed(circuit)


def test_each_failed_try_doubles_the_wait_up_to_half_a_minute(
    circuit: Circuit, clock: Clock
) -> None:
    open_it(circuit)
    for wait in (1, 2, 4, 8, 16, 30, 30):
        clock.now += wait - 0.01
        assert not circuit.would_allow()
        clock.now += 0.02
        fail(circuit)
    clock.now += 31
    succeed(circuit)
    open_it(circuit)
    clock.now += 1.01
    assert circuit.would_allow()


def test_the_waits_of_many_proxies_spread(clock: Clock) -> None:
    waits = []
    for jitter in (0.0, 1.0):
        spread = Circuit(clock, jitter=lambda jitter=jitter: jitter)  # type: ignore[misc]
        open_it(spread)
        began = clock.now
        while not spread.would_allow():
            clock.now += 0.05
        waits.append(clock.now - began)
    assert waits[0] == pytest.approx(0.75, abs=0.06)
    assert waits[1] == pytest.approx(1.25, abs=0.06)


def test_when_the_part_is_seen_again_one_call_tries_at_once(circuit: Circuit) -> None:
    open_it(circuit)
    circuit.answered()
    assert circuit.open
    fail(circuit)
    assert not circuit.would_allow()
    circuit.answered()
    succeed(circuit)
    assert not circuit.open


def test_a_try_whose_caller_leaves_leaves_the_try_to_the_next(circuit: Circuit) -> None:
    open_it(circuit)
    circuit.answered()
    with pytest.raises(asyncio.CancelledError), circuit.call(Budget(10)):
        raise asyncio.CancelledError
    assert circuit.open
    succeed(circuit)
    assert not circuit.open


def test_the_late_end_of_an_older_call_does_not_decide_the_try(circuit: Circuit) -> None:
    older = circuit.call()
    older.__enter__()
    open_it(circuit)
    circuit.answered()
    with circuit.call():
        older.__exit__(ServiceUnavailable, ServiceUnavailable("late"), None)
    assert not circuit.open


async def test_the_deadline_counts_against_who_used_the_time_up() -> None:
    circuit = Circuit()
    for _ in range(5):
        budget = Budget(0.02)

        async def slow(budget: Budget = budget) -> None:
            with circuit.call(budget):
                await asyncio.sleep(60)

        with pytest.raises(DeadlinePassed):
            await within(budget, slow())
        await asyncio.sleep(0)
    assert circuit.open


async def test_the_deadline_does_not_count_where_the_part_is_not_to_blame() -> None:
    clock = Clock()
    circuit = Circuit(clock)
    for blamed in [False] * 20 + [True] * 5:
        assert not circuit.open
        budget = Budget(1.0, clock)
        call = circuit.call(budget, lambda blamed=blamed: blamed)  # type: ignore[misc]
        call.__enter__()
        clock.now += 1.0
        budget.passed = True
        call.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    assert circuit.open


async def test_the_deadline_does_not_count_against_who_got_the_rest() -> None:
    clock = Clock()
    circuit = Circuit(clock)
    for _ in range(20):
        budget = Budget(1.0, clock)
        clock.now += 0.8  # spent by somebody else
        call = circuit.call(budget)
        call.__enter__()
        clock.now += 0.2
        budget.passed = True
        call.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    assert not circuit.open
