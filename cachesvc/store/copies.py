"""Copies of what was read, kept in memory, and how long they are to be trusted.

A copy is trusted only while the lease of `notices.py` holds, so it is never older than a change
that another replica made more than a second ago; and never after its TTL. The database's clock goes
on counting, from the time when the reading was *sent*: so nothing lives longer here than there.
"""

from __future__ import annotations

from collections.abc import Hashable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from moka_py import Moka
from msgspec import Struct

from cachesvc.store.notices import since_boot

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from cachesvc.store.notices import Notices

_MARKS_AT_MOST = 100_000  # changes remembered; beyond it everything is forgotten


class Copy(Struct, frozen=True):
    """What one query found, when it was sent, the names of what it depends on, and its bytes."""

    value: Any
    sent: float
    marks: tuple[Hashable, ...]
    weight: int


class Trust:
    """What has changed, and whether what was read before may still be told."""

    def __init__(
        self, notices: Notices, *, ttl_seconds: float, clock: Callable[[], float] = since_boot
    ) -> None:
        self.notices = notices
        self.clock = clock
        self.ttl = ttl_seconds
        # When each of these changed last: a copy read before then is none.
        self._changed: dict[Hashable, float] = {}
        self._all_changed = clock()

    def now(self, told: datetime, sent: float) -> datetime:
        """The database's clock, which told this to a reading."""
        return told + timedelta(seconds=self.clock() - sent)

    def stands(self, sent: float, marks: tuple[Hashable, ...]) -> bool:
        """Whether nothing of what these name has changed since, and it is not too long ago."""
        if self.clock() - sent > self.ttl or sent <= self._all_changed:
            return False
        changed = self._changed
        if changed:
            for mark in marks:
                if changed.get(mark, sent) > sent:
                    return False
        return True

    def touch(self, *marks: Hashable) -> None:
        """These have changed."""
        now = self.clock()
        for mark in marks:
            self._changed.pop(mark, None)
            self._changed[mark] = now  # the newest last
        while self._changed:
            mark, when = next(iter(self._changed.items()))
            if now - when <= self.ttl:
                break
            del self._changed[mark]
        if len(self._changed) > _MARKS_AT_MOST:
            self.forget()

    def forget(self) -> None:
        """Anything may have changed."""
        self._all_changed = self.clock()
        self._changed.clear()


class Copies:
    """At most `most_bytes` of copies, none kept for longer than they may be trusted.

    Those stay that are asked for most (W-TinyLFU: Einziger, Friedman, Manes, ACM TOS 2017).
    """

    def __init__(self, trust: Trust, most_bytes: int) -> None:
        self.trust = trust
        self.most_bytes = most_bytes
        self._kept: Moka[Hashable, Copy] = Moka(
            most_bytes, ttl=trust.ttl, weigher=lambda _, copy: copy.weight
        )

    @property
    def weight(self) -> int:
        """Bytes of all copies."""
        self._kept.run_pending_tasks()
        return self._kept.weighted_size()

    @property
    def number(self) -> int:
        self._kept.run_pending_tasks()
        return self._kept.count()

    def get(self, key: Hashable) -> Copy | None:
        """What is kept under the key, where that may be trusted."""
        if not self.trust.notices.holds:
            return None
        copy = self._kept.get(key)
        if copy is None or not self.trust.stands(copy.sent, copy.marks):
            return None
        return copy

    def untrusted(self, key: Hashable) -> Copy | None:
        """What is kept under the key, for whoever adds to it."""
        return self._kept.get(key)

    def keep(self, key: Hashable, copy: Copy) -> bool:
        """False where there is no room for it, or what has it is asked for more."""
        if copy.weight > self.most_bytes:
            return False
        self._kept.set(key, copy)
        # Moka makes room when it comes to it, and until then holds several times as much.
        self._kept.run_pending_tasks()
        return self._kept.get(key) is copy

    def drop(self, key: Hashable) -> None:
        self._kept.remove(key)

    def clear(self) -> None:
        self._kept.clear()
