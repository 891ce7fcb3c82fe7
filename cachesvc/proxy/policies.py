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
    """The last list read, and per policy the highest generation seen."""

    def __init__(self) -> None:
        self._policies: list[Policy] = []
        self._generations: dict[str, int] = {}
        self._behind: set[str] = set()  # whose last list said less than was known
        self.loaded = asyncio.Event()

    @property
    def any_active(self) -> bool:
        return any(policy.active for policy in self._policies)

    def match(self, model: str, scope_of: Callable[[Policy], str]) -> Policy | None:
        """The policy that rules a request, None when there is none or no list yet."""
        return match_policy(self._policies, model=model, scope_of=scope_of)

    def only(self) -> Policy | None:
        """The policy that rules a request whatever it asks, None where that depends on it."""
        active = [policy for policy in self._policies if policy.active]
        alone = len(active) == 1 and active[0].applies_to == "all" and active[0].streaming
        return active[0] if alone else None

    def replace(self, policies: list[Policy]) -> None:
        """A new list.

        One that says less than was known may come from a replica that lags behind. Two in a row
        say that the database was restored: what is lower than the truth costs a put, no more.
        """
        self._policies = list(policies)
        behind = {p.id for p in policies if p.generation < self._generations.get(p.id, 0)}
        for policy_id in behind & self._behind:
            self.forget(policy_id)
        self._behind = behind
        for policy in policies:
            self.learn(policy.id, policy.generation)
        self.loaded.set()

    def forget(self, policy_id: str) -> None:
        """The generation known is none of the service's: the next one seen counts."""
        self._generations.pop(policy_id, None)

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
    """Reads the list again and again; what was read stays in force while the service is away.

    `check` is told of every list that was read.
    """

    def __init__(
        self,
        book: PolicyBook,
        service: ServiceClient,
        circuit: Circuit,
        *,
        every_seconds: float,
        check: Callable[[list[Policy]], None] = lambda _: None,
    ) -> None:
        self._book = book
        self._service = service
        self._circuit = circuit
        self._every = every_seconds
        self._check = check
        self._away = False
        self._told: bool | None = None

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
        self._check(policies)
        self._tell(self._book.any_active)
        # Whoever answers this may answer lookups, too: the circuit lets one try.
        self._circuit.answered()

    def _tell(self, active: bool) -> None:
        """Say it once when there is nothing to judge by, and when there is again."""
        if active == self._told:
            return
        if not active:
            log.warning("no policy is active: everything is relayed, nothing is cached")
        elif self._told is not None:
            log.info("a policy is active again")
        self._told = active
