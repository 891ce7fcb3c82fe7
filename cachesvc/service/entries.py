"""`/cache/entries`: what is stored, one by one and page by page."""

from __future__ import annotations

import base64
import binascii
import struct
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

from msgspec import UNSET, Raw

from cachesvc.errors import Invalid, NotFound
from cachesvc.service.exchange import Reply
from cachesvc.service.query import read_query
from cachesvc.store.base import Listing
from cachesvc.wire import rfc3339
from cachesvc.wire_admin import EntryFilter, EntryList, EntryReply, EntrySummary, check_filter

if TYPE_CHECKING:
    from cachesvc.service.bounds import Bounds
    from cachesvc.service.exchange import Call
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import AdminStore, EntryRow

_PATIENT_SECONDS = 60.0
# When an entry was made, in microseconds since 1970, and its id.
_CURSOR = struct.Struct(">q16s")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Entries:
    """The handlers."""

    def __init__(self, store: AdminStore, telemetry: Telemetry, bounds: Bounds) -> None:
        self._store = store
        self._telemetry = telemetry
        self._bounds = bounds

    async def list(self, call: Call) -> Reply:
        query = read_query(call.query, EntryFilter)
        check_filter(query)
        listing = _listing(call.caller.tenant, query)
        call.require("admin")
        rows = await self._bounds.run(self._store.entries(listing), _PATIENT_SECONDS)
        # One more was asked for than is shown: it tells whether there is another page.
        shown = rows[: query.limit]
        cursor = _cursor(shown[-1]) if len(rows) > query.limit else None
        summaries = [EntrySummary(**_told(row)) for row in shown]
        return Reply(EntryList(entries=summaries, next_cursor=cursor))

    async def get(self, call: Call) -> Reply:
        call.require("admin")
        row = await self._bounds.run(self._store.entry(call.caller.tenant, _entry_id(call)))
        if row is None:
            raise entry_not_found()
        reply, answer = EntryReply(**_told(row)), row.answer
        if answer.media_type is None:
            reply.response = Raw(answer.body)
        else:
            reply.body = answer.body
        return Reply(reply)

    async def delete(self, call: Call) -> Reply:
        call.require("admin")
        gone = await self._bounds.run(
            self._store.delete_entry(call.caller.tenant, _entry_id(call)), _PATIENT_SECONDS
        )
        if not gone:
            raise entry_not_found()
        self._telemetry.evicted("purged", 1)
        return Reply(status=204)


def selected_entry(text: str) -> UUID:
    """The entry that a body names. Raises Invalid."""
    try:
        return UUID(text)
    except ValueError as exc:
        raise Invalid("entry_id: must be a UUID") from exc


def entry_not_found() -> NotFound:
    return NotFound("entry not found")


def _entry_id(call: Call) -> UUID:
    try:
        return UUID(call.parameters["entry_id"])
    except ValueError as exc:
        raise entry_not_found() from exc


def _listing(tenant: str, query: EntryFilter) -> Listing:
    return Listing(
        tenant=tenant,
        policy_id=query.policy_id,
        scope=query.scope,
        tags=tuple(query.tag) or None,
        model=query.model,
        older_than_seconds=query.older_than_seconds,
        tier=query.tier,
        prompt=query.prompt or None,
        state=query.state,
        after=None if query.cursor is None else _place_of(query.cursor),
        limit=query.limit + 1,
    )


def _cursor(row: EntryRow) -> str:
    microseconds = (row.created_at - _EPOCH) // timedelta(microseconds=1)
    packed = _CURSOR.pack(microseconds, row.entry_id.bytes)
    return base64.urlsafe_b64encode(packed).decode()


def _place_of(cursor: str) -> tuple[datetime, UUID]:
    try:
        packed = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
        microseconds, entry_id = _CURSOR.unpack(packed)
        return _EPOCH + timedelta(microseconds=microseconds), UUID(bytes=entry_id)
    except (UnicodeEncodeError, binascii.Error, struct.error, OverflowError) as exc:
        raise Invalid("cursor: is no next_cursor of a page before") from exc


def _told(row: EntryRow) -> dict[str, Any]:
    answer = row.answer
    return {
        "entry_id": str(row.entry_id),
        "policy_id": row.place.policy_id,
        "scope": row.place.scope,
        "space": row.space,
        "dimensions": row.dimensions,
        "exact_key": None if row.exact_key is None else row.exact_key.hex(),
        "partition": row.partition.hex() or None,
        "prompt_text": row.prompt_text,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "model": row.model,
        "tags": list(row.tags),
        "upstream_ms": answer.upstream_ms,
        "generation": row.generation,
        "provenance": row.provenance,
        "created_at": rfc3339(row.created_at),
        "exact_expires_at": _moment(row.exact_expires_at),
        "semantic_expires_at": _moment(row.semantic_expires_at),
        "aliases": row.aliases,
        "state": row.state,
        "body_bytes": row.body_bytes,
        "hits": row.hits,
        "last_hit_at": _moment(row.last_hit_at),
        "media_type": UNSET if answer.media_type is None else answer.media_type,
    }


def _moment(value: datetime | None) -> str | None:
    return None if value is None else rfc3339(value)
