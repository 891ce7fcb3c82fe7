"""judge(): is a request ours to judge, under which policy, and what does its caller wish?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cachesvc.core.keys import KEY_HEADERS, Target, effective_model, exact_key, partition, question
from cachesvc.core.model import Bypass, Reason, Tier
from cachesvc.core.scope import credential_of, scope_of
from cachesvc.core.steering import read_steering
from cachesvc.proxy.apart import INLINE_BYTES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from cachesvc.core.ask import Ask
    from cachesvc.core.keys import Question
    from cachesvc.core.policy import Policy
    from cachesvc.core.steering import Steering
    from cachesvc.dialects.base import Dialect
    from cachesvc.proxy.policies import PolicyBook
    from cachesvc.proxy.request import Head
    from cachesvc.settings import Settings

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
    model: str
    scope: str
    headers: Mapping[str, Sequence[str]] = field(repr=False)
    secret: bytes = field(repr=False)
    exact_key: str
    question: Question | None
    steering: Steering
    bypass: Bypass | None
    request_id: str | None
    size: int
    read: tuple[Ask, Target] | None = field(repr=False)  # until the partition is made of it
    generation: int | None = None
    retry: bool = False  # of a call that has been counted
    embedding: asyncio.Task[bytes | None] | None = field(default=None, repr=False)
    _partition: str | None = field(default=None, repr=False)

    @property
    def call(self) -> tuple[str, str, str]:
        """(policy, scope, exact key): what makes two requests the same call."""
        return self.policy.id, self.scope, self.exact_key

    def credential(self) -> str:
        """A name for the caller's credential."""
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
        """64 hex digits, None when there is no question. Made once."""
        if self.read is not None and self.question is not None:
            self._partition = partition(*self.read, self.policy, self.question).hex()
            self.read = None
        return self._partition

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

    def judge(self, dialect: Dialect, request: Head, body: bytes) -> Judged | None:
        """The request under its policy, None when none rules it. Raises Unreadable."""
        ask = dialect.read(body)
        target = self._target(request)
        model = effective_model(ask, target)
        policy = self._book.match(model, lambda p: scope_of(request.headers, p, self._secret))
        if policy is None or (ask.stream and not policy.streaming):
            return None
        steering = read_steering(request.headers, policy)
        judged = Judged(
            policy=policy,
            dialect=dialect,
            model=model,
            scope=scope_of(request.headers, policy, self._secret),
            headers=request.headers,
            secret=self._secret,
            exact_key=exact_key(ask, target).hex(),
            question=question(ask, policy),
            steering=steering,
            bypass=_bypass(ask, policy, steering),
            request_id=request.request_id,
            size=len(body),
            read=(ask, target),
        )
        if judged.size > INLINE_BYTES:
            # A parsed body is many times larger than its bytes, and hashed in this thread.
            if policy.has(Tier.SEMANTIC):
                judged.partition()
            judged.read = None
        return judged

    def _target(self, request: Head) -> Target:
        headers = request.headers
        return Target(
            method=request.method,
            path=request.path,
            query=request.query,
            upstream=request.upstream or self._upstream,
            headers=tuple((name, headers[name]) for name in self._key_headers if name in headers),
            forced=self._forced,
        )


def _bypass(ask: Ask, policy: Policy, steering: Steering) -> Bypass | None:
    if steering.skip is not None:
        return Bypass(steering.skip)
    if ask.stateful:
        return Bypass(Reason.STATEFUL)
    asked = _DEFAULT_TEMPERATURE if ask.temperature is None else ask.temperature
    if policy.max_temperature is not None and asked > policy.max_temperature:
        return Bypass(Reason.BYPASS_RULE)
    return Bypass(Reason.CALLER_NO_CACHE) if steering.no_cache else None
