"""The embedders of a proxy by name: `[embed]`, and `[embed.<name>]` for policies that name one."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from cachesvc.core.model import Tier
from cachesvc.errors import EmbedError
from cachesvc.proxy.embedding import Embeddings
from cachesvc.proxy.seam import Circuit

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping
    from typing import Any

    from cachesvc.core.policy import Policy
    from cachesvc.embed.base import Embedder
    from cachesvc.proxy.judge import Judged
    from cachesvc.proxy.telemetry import Telemetry

log = logging.getLogger("cachesvc.proxy")

_WARM_AGAIN_SECONDS = 2.0


class _Table:
    """One embedder: whether it has shown that it works, and its calls."""

    def __init__(self, name: str, embedder: Embedder | None, telemetry: Telemetry) -> None:
        self.label = f"embedder {name}" if name else "embedder"
        self.ready = asyncio.Event()
        self._embedder = embedder
        circuit = Circuit()
        telemetry.watch_circuit(self.label.replace(" ", ":"), lambda: circuit.open)
        self.calls = Embeddings(embedder, self.ready, circuit, telemetry)

    async def warm(self) -> None:
        """Warm the embedder, again and again until it is."""
        told = False
        while self._embedder is not None:
            try:
                await self._embedder.warm()
                break
            except EmbedError as exc:
                if not told:
                    log.warning("the %s does not work (%s): exact matches only", self.label, exc)
                told = True
                await asyncio.sleep(_WARM_AGAIN_SECONDS)
        self.ready.set()
        if told:
            log.warning("the %s works", self.label)

    async def close(self) -> None:
        if self._embedder is not None:
            await self._embedder.close()


class EmbedTables:
    """Which embedder a policy has. Takes the embedders over; several names may share one."""

    def __init__(self, embedders: Mapping[str, Embedder | None], telemetry: Telemetry) -> None:
        self._named: dict[str, _Table] = {}
        # Whoever shares an embedder shares its queue and its circuit, too.
        self._tables: dict[int | str, _Table] = {}
        for name, embedder in embedders.items():
            which = name if embedder is None else id(embedder)
            if which not in self._tables:
                self._tables[which] = _Table(name, embedder, telemetry)
            self._named[name] = self._tables[which]
        self._telemetry = telemetry
        # A policy whose table is not here compares nothing: never by another model's vectors.
        self._none = Embeddings(None, asyncio.Event(), Circuit(), telemetry)
        self._told: set[tuple[str, str]] = set()

    def of(self, policy: Policy) -> Embeddings:
        """The embedder of the table that the policy names."""
        table = self._named.get(policy.embed)
        return self._none if table is None else table.calls

    def count_missing(self, judged: Judged) -> None:
        """Count a lookup that compares nothing because its policy's table is not here."""
        semantic = judged.policy.has(Tier.SEMANTIC) and judged.question is not None
        if semantic and judged.policy.embed not in self._named:
            self._telemetry.embedding_failed("", "no_such_table")

    def check(self, policies: Iterable[Policy]) -> None:
        """Warn, once each, of policies that name a table which is not here."""
        missing = {
            (policy.id, policy.embed)
            for policy in policies
            if policy.active and policy.has(Tier.SEMANTIC) and policy.embed not in self._named
        }
        for policy_id, name in sorted(missing - self._told):
            log.warning(
                "policy %s names [embed.%s], which this proxy does not have: exact matches only",
                policy_id,
                name,
            )
        self._told = missing

    @property
    def ready(self) -> list[asyncio.Event]:
        """Set, each, once its embedder is warm."""
        return [table.ready for table in self._tables.values()]

    def missing(self) -> list[str]:
        """What is not warm yet, in words."""
        cold = [table.label for table in self._tables.values() if not table.ready.is_set()]
        return [f"the {label} is not warm" for label in cold]

    def warming(self) -> list[Coroutine[Any, Any, None]]:
        """The work of warming them all."""
        return [table.warm() for table in self._tables.values()]

    async def close(self) -> None:
        for table in self._tables.values():
            await table.close()
