"""Who looks on while an answer passes: nobody, or the one that marks it and keeps a copy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from cachesvc.core.model import Bypass, Reason
from cachesvc.errors import UpstreamFailed
from cachesvc.proxy.apart import offloaded
from cachesvc.proxy.capture import Capture
from cachesvc.proxy.puts import Answer
from cachesvc.proxy.request import Whole

if TYPE_CHECKING:
    from cachesvc.core.model import Miss
    from cachesvc.core.policy import Policy
    from cachesvc.dialects.base import Dialect
    from cachesvc.proxy.capture import Incoming
    from cachesvc.proxy.headers import CacheHeaders
    from cachesvc.proxy.judge import Judged
    from cachesvc.proxy.proofs import Proofs
    from cachesvc.proxy.puts import Puts
    from cachesvc.proxy.request import RawHeaders
    from cachesvc.proxy.seam import Guard

_JSON = (b"content-type", b"application/json")
_BODY_HEADERS = frozenset({b"content-type", b"content-encoding", b"content-length"})


class Side(Protocol):
    """Told of everything that passes. Never fails, but for `ending`."""

    def head(self, upstream: Incoming) -> RawHeaders:
        """The answer begins: the headers to send."""

    def joined(self, upstream: Incoming) -> RawHeaders:
        """The headers for a caller whose answer comes of the call of another."""

    def piece(self, data: bytes) -> None:
        """The caller has these bytes."""

    async def ending(self) -> None:
        """The upstream has ended. Raises UpstreamFailed when it must have broken off."""

    def done(self) -> None:
        """The caller has the whole answer."""

    def broken(self, reason: Reason) -> None:
        """The caller does not have the whole answer."""

    def left(self) -> None:
        """The caller wants no more. Of a body that has said its end there is no more."""

    def released(self) -> None:
        """The caller left before anything was there for it, and nothing was to be kept."""

    def error(self, failure: UpstreamFailed) -> Whole:
        """No answer began: the error to send."""


class Bystander:
    """Of an answer to a request that is not judged."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def head(self, upstream: Incoming) -> RawHeaders:
        return upstream.headers

    def joined(self, upstream: Incoming) -> RawHeaders:
        return _of_the_body(upstream)

    def piece(self, data: bytes) -> None: ...

    async def ending(self) -> None: ...

    def done(self) -> None: ...

    def broken(self, reason: Reason) -> None: ...

    def left(self) -> None: ...

    def released(self) -> None: ...

    def error(self, failure: UpstreamFailed) -> Whole:
        return error_reply(self._dialect, failure.status, failure.message)


class Teller(Bystander):
    """Of an answer to a request that could not be judged: says so, and keeps nothing."""

    def __init__(
        self, dialect: Dialect, outcome: Miss, headers: CacheHeaders, policy: Policy, guard: Guard
    ) -> None:
        super().__init__(dialect)
        self._outcome = outcome
        self._headers = headers
        self._policy = policy
        self._guard = guard

    def head(self, upstream: Incoming) -> RawHeaders:
        with self._guard:
            ours = self._headers.of_pass(self._outcome, upstream.status, self._policy)
            return self._headers.merged(upstream.headers, ours, self._policy)
        return upstream.headers

    def error(self, failure: UpstreamFailed) -> Whole:
        reply = super().error(failure)
        with self._guard:
            ours = self._headers.of_pass(self._outcome, None, self._policy)
            return Whole(reply.status, (*reply.headers, *ours), reply.body)
        return reply


class Keeper:
    """Of an answer to a judged request: says what the cache did, and hands a copy to the puts."""

    def __init__(
        self,
        judged: Judged,
        outcome: Miss | Bypass,
        headers: CacheHeaders,
        proofs: Proofs,
        puts: Puts,
        guard: Guard,
    ) -> None:
        self._judged = judged
        self._outcome = outcome
        self._headers = headers
        self._proofs = proofs
        self._puts = puts
        self._guard = guard
        self._began = time.monotonic()
        self._capture: Capture | None = None
        self._framed = True

    def head(self, upstream: Incoming) -> RawHeaders:
        with self._guard:
            self._proofs.learn(self._judged.credential(), upstream.status)
            policy = self._judged.policy
            ours = self._headers.of_pass(self._outcome, upstream.status, policy)
            merged = self._headers.merged(upstream.headers, ours, policy)
            if self._left_alone:
                return merged
            self._framed = upstream.framed
            self._capture = Capture(upstream, self._judged.dialect, policy)
            return merged
        return upstream.headers

    def joined(self, upstream: Incoming) -> RawHeaders:
        shared = _of_the_body(upstream)
        with self._guard:
            self._judged.release()
            policy = self._judged.policy
            ours = self._headers.of_pass(self._outcome, upstream.status, policy, collapsed=True)
            return [*shared, *ours]
        return shared

    def piece(self, data: bytes) -> None:
        with self._guard:
            if self._capture is not None:
                self._capture.feed(data)

    async def ending(self) -> None:
        # A body without a length looks the same whole and cut: what it says must tell.
        cut = False
        capture = self._capture
        with self._guard:
            if capture is not None and not self._framed:
                cut = await offloaded(capture.size, capture.looks_cut)
        if cut:
            raise UpstreamFailed("the upstream ended its answer too early")

    def done(self) -> None:
        with self._guard:
            spent_ms = (time.monotonic() - self._began) * 1000
            if self._capture is not None:
                self._puts.start(Answer(self._judged, self._capture, spent_ms))
            else:
                self._judged.release()

    def broken(self, reason: Reason) -> None:
        with self._guard:
            if self._left_alone:
                self._judged.release()
            else:
                self._puts.skip(self._judged, reason)

    def released(self) -> None:
        with self._guard:
            self._judged.release()

    def left(self) -> None:
        cut = True
        with self._guard:
            cut = self._capture is None or self._capture.looks_cut()
        if cut:
            self.broken(Reason.INCOMPLETE)
        else:
            self.done()

    def error(self, failure: UpstreamFailed) -> Whole:
        reply = error_reply(self._judged.dialect, failure.status, failure.message)
        with self._guard:
            ours = self._headers.of_pass(self._outcome, None, self._judged.policy)
            return Whole(reply.status, (*reply.headers, *ours), reply.body)
        return reply

    @property
    def _left_alone(self) -> bool:
        """Neither read nor written: nothing to keep, and nothing to count as not kept."""
        return (
            isinstance(self._outcome, Bypass) and self._outcome.reason is not Reason.CALLER_NO_CACHE
        )


def _of_the_body(upstream: Incoming) -> RawHeaders:
    """Nothing of another's exchange but what the body needs: no cookies, no rate limits."""
    return [pair for pair in upstream.headers if pair[0].lower() in _BODY_HEADERS]


def error_reply(dialect: Dialect, status: int, message: str) -> Whole:
    """An error in the protocol's shape."""
    code = {400: "bad_target", 502: "upstream_error", 504: "upstream_timeout"}[status]
    return Whole(status, (_JSON,), dialect.error(status, code, message))
