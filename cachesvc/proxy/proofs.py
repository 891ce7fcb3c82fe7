"""Which credentials the upstream has accepted of late (`design.md` 5, "Shared, yet not open")."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesvc.core.policy import Policy

_MOST = 100_000
_REFUSED = (401, 403)


class Proofs:
    """A bounded memory of credentials, by their keyed hash. `seconds` 0 asks for no proof."""

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic, most: int = _MOST
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._most = most
        self._accepted: OrderedDict[str, float] = OrderedDict()

    def missing(self, policy: Policy, credential: Callable[[], str]) -> bool:
        """The policy shares answers beyond the credential, and this one has shown nothing yet.

        `credential` is called only where that matters, which is not for most hits.
        """
        if not self._seconds or policy.sharing != "shared":
            return False
        accepted = self._accepted.get(credential())
        return accepted is None or self._clock() - accepted > self._seconds

    def learn(self, credential: str, status: int) -> None:
        """The upstream answered this credential: 2xx proves it, 401 and 403 take the proof away."""
        if not self._seconds:
            return
        if status in _REFUSED:
            self._accepted.pop(credential, None)
        elif 200 <= status < 300:
            self._accepted[credential] = self._clock()
            self._accepted.move_to_end(credential)
            while len(self._accepted) > self._most:
                self._accepted.popitem(last=False)
