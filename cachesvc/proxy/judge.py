"""judge(): is a request ours to judge, under which policy, and what does its caller wish?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cachesvc.core.keys import KEY_HEADERS, Target, effective_model, exact_key, partition, question
from cachesvc.core.model import Bypass, Reason
from cachesvc.core.scope import credential_of, scope_of
from cachesvc.core.steering import read_steering

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from cachesvc.config import Settings
    from cachesvc.core.ask import Ask
    from cachesvc.core.keys import Question
    from cachesvc.core.policy import Policy
    from cachesvc.core.steering import Steering
    from cachesvc.dialects.base import Dialect
    from cachesvc.proxy.policies import PolicyBook
    from cachesvc.proxy.request import Request

# What the API takes an absent temperature for.
_DEFAULT_TEMPERATURE = 1.0


@dataclass(slots=True)
class Judged:
    """A request under a policy.

    `bypass` says why the cache is not asked, None when it is. `generation` is the policy's, known
    before the request is forwarded; None until it is, and then nothing is put.
    """

    policy: Policy
    dialect: Dialect
    ask: Ask
    target: Target
    scope: str
    headers: Mapping[str, Sequence[str]] = field(repr=False)
    secret: bytes = field(repr=False)
    exact_key: str
    question: Question | None
    steering: Steering
    bypass: Bypass | None
    request_id: str | None
    size: int
    generation: int | None = None
    embedding: asyncio.Task[bytes | None] | None = field(default=None, repr=False)

    @property
    def model(self) -> str:
        return effective_model(self.ask, self.target)

    @property
    def credential(self) -> str:
        """A name for the caller's credential; made when asked for, which most hits never do."""
        return credential_of(self.headers, self.secret)

    @property
    def not_put(self) -> Reason | None:
        """Why the answer is not kept, whatever it is; None when it may be."""
        if self.bypass is not None and self.bypass.reason is not Reason.CALLER_NO_CACHE:
            return self.bypass.reason
        if self.steering.no_store or self.steering.ttl_seconds == 0:
            return Reason.CALLER_NO_STORE
        return None

    def partition(self) -> str | None:
        """64 hex digits, None when there is no question."""
        if self.question is None:
            return None
        return partition(self.ask, self.target, self.policy, self.question).hex()

    def release(self) -> None:
        """Nobody needs the vector any more."""
        if self.embedding is not None:
            self.embedding.cancel()


class Judge:
    """Reads requests by the operator's rules. Pure but for the policy book it looks into."""

    def __init__(self, settings: Settings, book: PolicyBook) -> None:
        proxy = settings.proxy
        self._book = book
        self._secret = proxy.scope_secret.encode("utf-8")
        self._upstream = settings.upstream_name
        self._forced = proxy.forced
        names = {*KEY_HEADERS, *(name.lower() for name in proxy.key_headers)}
        self._key_headers = tuple(sorted(names))

    def judge(self, dialect: Dialect, request: Request, body: bytes) -> Judged | None:
        """The request under its policy, None when none rules it. Raises Unreadable."""
        ask = dialect.read(body)
        target = self._target(request)
        policy = self._book.match(
            effective_model(ask, target), lambda p: scope_of(request.headers, p, self._secret)
        )
        if policy is None or (ask.stream and not policy.streaming):
            return None
        steering = read_steering(request.headers, policy)
        return Judged(
            policy=policy,
            dialect=dialect,
            ask=ask,
            target=target,
            scope=scope_of(request.headers, policy, self._secret),
            headers=request.headers,
            secret=self._secret,
            exact_key=exact_key(ask, target).hex(),
            question=question(ask, policy),
            steering=steering,
            bypass=_bypass(ask, policy, steering),
            request_id=request.request_id,
            size=len(body),
        )

    def _target(self, request: Request) -> Target:
        headers = request.headers
        return Target(
            method=request.method,
            path=request.path,
            query=request.query,
            upstream=self._upstream,
            headers=tuple((name, headers[name]) for name in self._key_headers if name in headers),
            forced=self._forced,
        )


def _bypass(ask: Ask, policy: Policy, steering: Steering) -> Bypass | None:
    if steering.skip is not None:
        return Bypass(steering.skip)
    asked = _DEFAULT_TEMPERATURE if ask.temperature is None else ask.temperature
    if policy.max_temperature is not None and asked > policy.max_temperature:
        return Bypass(Reason.BYPASS_RULE)
    return Bypass(Reason.CALLER_NO_CACHE) if steering.no_cache else None
