"""The policies in force, as this proxy knows them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from cachesvc.core.policy import match_policy
from cachesvc.errors import ServiceError
from cachesvc.proxy.seam import Budget, DeadlinePassed, within

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesvc.core.policy import Policy
    from cachesvc.proxy.client import ServiceClient
    from cachesvc.proxy.seam import Circuit

log = logging.getLogger("cachesvc.proxy")

_POLL_TIMEOUT_SECONDS = 2.0
_POLL_SECONDS_WHILE_OPEN = 1.0


class PolicyBook:
    """The last list read, and per policy the highest generation ever seen."""

    def __init__(self) -> None:
        self._policies: list[Policy] = []
        self._generations: dict[str, int] = {}
        self.loaded = asyncio.Event()

    @property
    def any_active(self) -> bool:
        return any(policy.active for policy in self._policies)

    def match(self, model: str, scope_of: Callable[[Policy], str]) -> Policy | None:
        """The policy that rules a request, None when there is none or no list yet."""
        return match_policy(self._policies, model=model, scope_of=scope_of)

    def replace(self, policies: list[Policy]) -> None:
        """A new list. Generations never go down: a replica may lag behind."""
        self._policies = list(policies)
        for policy in policies:
            self.learn(policy.id, policy.generation)
        self.loaded.set()

    def drop(self, policy_id: str) -> None:
        """The service knows no such policy: leave it out until it is listed again."""
        self._policies = [policy for policy in self._policies if policy.id != policy_id]

    def learn(self, policy_id: str, generation: int) -> int:
        """The highest generation known, now that `generation` was seen."""
        known = max(generation, self._generations.get(policy_id, 0))
        self._generations[policy_id] = known
        return known

    def generation(self, policy_id: str) -> int | None:
        """The highest generation known, None where none is."""
        return self._generations.get(policy_id)


class Poller:
    """Reads the list again and again; what was read stays in force while the service is away."""

    def __init__(
        self, book: PolicyBook, service: ServiceClient, circuit: Circuit, *, every_seconds: float
    ) -> None:
        self._book = book
        self._service = service
        self._circuit = circuit
        self._every = every_seconds
        self._away = False

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self._poll()
            await asyncio.sleep(
                min(self._every, _POLL_SECONDS_WHILE_OPEN) if self._circuit.open else self._every
            )

    async def _poll(self) -> None:
        try:
            policies = await within(Budget(_POLL_TIMEOUT_SECONDS), self._service.policies())
        except (ServiceError, DeadlinePassed) as exc:
            if not self._away:
                log.warning("policies cannot be read (%s); the last ones stay in force", exc)
            self._away = True
            return
        if self._away:
            log.warning("policies can be read again")
        self._away = False
        self._book.replace(policies)
        # Whoever answers this may answer lookups, too: the circuit lets one try.
        self._circuit.answered()
