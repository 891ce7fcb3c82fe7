"""The one module that fails open: whatever the cache does, the caller gets an answer.

Three walls. `within`: nothing the cache does takes longer than the request's budget. `Circuit`: a
cache that is away costs nothing. `Guard`: a bug of ours is told loudly, counted as `bug`, and the
request goes on to the upstream.
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from cachesvc.core.model import Miss, Reason
from cachesvc.deadline import Overdue, Within
from cachesvc.errors import CacheError, EmbedError, ServiceError, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Any

log = logging.getLogger("cachesvc.proxy")

_T = TypeVar("_T")

FAILURES = 5
WINDOW_SECONDS = 10.0
# Failures are sought among this many calls, so that a service which now and then is late under
# heavy load keeps its hits, while one that has died is left alone after five calls.
WINDOW_CALLS = 10
FIRST_DELAY_SECONDS = 1.0
LAST_DELAY_SECONDS = 30.0


class DeadlinePassed(CacheError):
    """The request's budget is used up."""


class CircuitOpen(CacheError):
    """This part of the cache is left alone for a while."""


class Budget:
    """What the cache may add to one request, in seconds from now; embedding included."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.passed = False
        self._clock = clock
        self._began = clock()

    def pass_by(self) -> None:
        """It is used up."""
        self.passed = True

    @property
    def spent(self) -> float:
        return self._clock() - self._began

    @property
    def left(self) -> float:
        return self.seconds - self.spent


async def within(budget: Budget, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, or DeadlinePassed once the budget is used up.

    Detached: `work` is then cancelled but not waited for, since what hangs may hang in its
    cancellation, too.
    """
    try:
        return await Within(max(0.0, budget.left), work, late=budget.pass_by)
    except Overdue:
        raise DeadlinePassed from None


class Circuit:
    """Leaves a part of the cache alone while it fails.

    Opens after 5 failures among the last 10 calls and within 10 s. After 1 s, doubling to 30 s
    with jitter, or at once when `answered` is told that the part is back, it lets one call
    through: that call's success closes it, its failure opens it again.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._calls: deque[float | None] = deque(maxlen=WINDOW_CALLS)  # when it failed, or None
        self._delay = FIRST_DELAY_SECONDS
        self._half_open_at: float | None = None
        self._trying = False

    @property
    def open(self) -> bool:
        """Not closed: at most one call goes through."""
        return self._half_open_at is not None

    def would_allow(self) -> bool:
        """A call may be made. Costs nothing and takes nothing."""
        if self._half_open_at is None:
            return True
        return not self._trying and self._clock() >= self._half_open_at

    def call(
        self, budget: Budget | None = None, blamed: Callable[[], bool] = lambda: True
    ) -> _Call:
        """A context for one call; entering it raises CircuitOpen, leaving it tells the outcome.

        `blamed` is asked after a deadline: whether the part is to blame for it.
        """
        return _Call(self, budget, blamed)

    def answered(self) -> None:
        """Something else has seen that the part is back: let one call through at once."""
        if self._half_open_at is not None:
            self._half_open_at = self._clock()

    def begin(self) -> bool:
        """Whether this call is the one that tries the part. Raises CircuitOpen."""
        if not self.would_allow():
            raise CircuitOpen
        self._trying = self._half_open_at is not None
        return self._trying

    def succeeded(self, trial: bool) -> None:
        self._calls.append(None)
        if trial:
            self._calls.clear()
            self._half_open_at, self._trying, self._delay = None, False, FIRST_DELAY_SECONDS

    def failed(self, trial: bool) -> None:
        now = self._clock()
        self._calls.append(now)
        if trial:
            self._delay = min(self._delay * 2, LAST_DELAY_SECONDS)
            self._open(now)
        elif self._half_open_at is None and self._recent_failures(now) >= FAILURES:
            self._open(now)

    def released(self, trial: bool) -> None:
        """The call ended without telling anything about the part: its caller left."""
        if trial:
            self._trying = False

    def _open(self, now: float) -> None:
        self._trying = False
        self._half_open_at = now + self._delay * (0.75 + 0.5 * self._jitter())

    def _recent_failures(self, now: float) -> int:
        return sum(1 for at in self._calls if at is not None and now - at <= WINDOW_SECONDS)


class _Call:
    """One call through a circuit. Fed by faults and deadlines, never by a caller who leaves."""

    def __init__(self, circuit: Circuit, budget: Budget | None, blamed: Callable[[], bool]) -> None:
        self._circuit = circuit
        self._budget = budget
        self._blamed = blamed
        self._spent_before = 0.0
        self._trial = False

    def __enter__(self) -> None:
        self._trial = self._circuit.begin()
        self._spent_before = self._budget.spent if self._budget else 0.0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, ServiceUnavailable | EmbedError):
            self._circuit.failed(self._trial)
        elif error is None or isinstance(error, ServiceError):
            self._circuit.succeeded(self._trial)
        elif self._used_up_the_budget() and self._blamed():
            self._circuit.failed(self._trial)
        else:
            self._circuit.released(self._trial)

    def _used_up_the_budget(self) -> bool:
        """The deadline ended this call, and most of the budget went into it.

        A call that got what another had left over is not to blame.
        """
        budget = self._budget
        if budget is None or not budget.passed:
            return False
        return budget.spent - self._spent_before >= budget.seconds / 2


async def fail_open(budget: Budget, work: Coroutine[Any, Any, _T]) -> _T | Miss:
    """The outcome of a lookup, or the Miss that its failure amounts to."""
    try:
        return await within(budget, work)
    except DeadlinePassed:
        return Miss(Reason.LOOKUP_TIMEOUT)
    except CircuitOpen:
        return Miss(Reason.CIRCUIT_OPEN)
    except EmbedError:
        return Miss(Reason.EMBEDDER_FAILED)
    except ServiceError:
        return Miss(Reason.CACHE_UNAVAILABLE)


class Guard:
    """The outer guard, as a context: an exception inside ends the block and nothing else.

    The only place that catches Exception. Each kind of bug is logged with its traceback once.
    """

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count
        self._told: set[tuple[type[BaseException], str]] = set()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._count()
        bug = (type(error), _where(trace))
        if bug not in self._told:
            self._told.add(bug)
            # The message of an unforeseen error may hold what a caller sent: only its kind is told.
            log.error(
                "a bug in cachesvc, %s at %s; requests go on without the cache\n%s",
                bug[0].__name__,
                bug[1],
                "".join(traceback.format_tb(trace)),
            )
        return True


def _where(trace: TracebackType | None) -> str:
    """The innermost place, as file:line."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
