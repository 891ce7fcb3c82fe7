"""Policies remembered in process, so that a lookup costs no query for its policy.

A remembered policy is never trusted alone: whatever is found carries the revision it was found
under, and what needs no query is decided only on a policy that was just read.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from cachesvc.errors import NotFound

if TYPE_CHECKING:
    from cachesvc.store.base import EntryStore, PolicyRow

_AT_MOST = 10_000


class Policies:
    """The policies that this process has met."""

    def __init__(self, store: EntryStore) -> None:
        self._store = store
        self._rows: OrderedDict[tuple[str, str], PolicyRow] = OrderedDict()

    def remembered(self, tenant: str, policy_id: str) -> PolicyRow | None:
        """The policy as it stood at some time."""
        return self._rows.get((tenant, policy_id))

    async def read(self, tenant: str, policy_id: str) -> PolicyRow:
        """The policy as it stands. Raises NotFound, also for another tenant's."""
        row = await self._store.policy(tenant, policy_id)
        if row is None:
            self.forget(tenant, policy_id)
            raise policy_not_found()
        self._rows[tenant, policy_id] = row
        if len(self._rows) > _AT_MOST:
            self._rows.popitem(last=False)
        return row

    def forget(self, tenant: str, policy_id: str) -> None:
        self._rows.pop((tenant, policy_id), None)


def policy_not_found() -> NotFound:
    """In the words that AISIX data planes know."""
    return NotFound("cache_policy not found")
