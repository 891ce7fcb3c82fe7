"""Counts lookups once, though one lookup may come as two calls.

A proxy asks for the exact key first and sends the vector only when that misses (`after_exact`).
The first call's miss is held back for a moment; the second call takes its place.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

HELD_SECONDS = 2.0
_HELD_AT_MOST = 10_000


class Counted(NamedTuple):
    """One lookup as metrics tell it."""

    tenant: str
    policy_id: str
    outcome: str  # hit | miss | shadow | bypass
    tier: str  # exact | semantic | none
    reason: str


@dataclass(slots=True)
class _Held:
    counted: Counted
    since: float
    calls: int = 1
    written: bool = False


class HeldMisses:
    """Misses of exact-only calls that may still be followed up, oldest first."""

    def __init__(self, write: Callable[[Counted], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._held: OrderedDict[tuple[object, ...], _Held] = OrderedDict()

    def hold(self, key: tuple[object, ...], counted: Counted) -> None:
        """Hold the miss of a first call back."""
        self.age()
        held = self._held.get(key)
        if held is not None and not held.written:
            held.calls += 1
            return
        self._held.pop(key, None)
        self._held[key] = _Held(counted, self._clock())
        if len(self._held) > _HELD_AT_MOST:
            self._give_up(self._held.popitem(last=False)[1])

    def follow(self, key: tuple[object, ...], counted: Counted) -> None:
        """Count a follow-up in the place of the first call it completes."""
        self.age()
        held = self._held.get(key)
        if held is not None:
            held.calls -= 1
            if not held.calls:
                del self._held[key]
            if held.counted.tier != "none":
                # In shadow, what the exact tier would have answered is the lookup's outcome.
                counted = held.counted
            # A scrape that fell between the two calls has counted the first one already.
            if held.written and (counted is held.counted or counted.outcome == "miss"):
                return
        self._write(counted)

    def age(self) -> None:
        """Count what nobody has followed up in time."""
        oldest = self._clock() - HELD_SECONDS
        while self._held:
            key, held = next(iter(self._held.items()))
            if held.since > oldest:
                return
            del self._held[key]
            self._give_up(held)

    def write_all(self) -> None:
        """Count everything that is held: somebody is about to read the counters."""
        self.age()
        for held in self._held.values():
            self._give_up(held)

    def _give_up(self, held: _Held) -> None:
        if not held.written:
            held.written = True
            for _ in range(held.calls):
                self._write(held.counted)
