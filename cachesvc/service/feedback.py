"""`POST /cache/feedback`: somebody judges an answer that they were served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.core.vectors import read_vector
from cachesvc.service import codec
from cachesvc.service.entries import entry_not_found, selected_entry
from cachesvc.service.exchange import Reply
from cachesvc.store.records import MAX_PROMPT_CHARS, NewVerdict
from cachesvc.wire import FeedbackReply, check_feedback

if TYPE_CHECKING:
    from cachesvc.service.bounds import Bounds
    from cachesvc.service.exchange import Call
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.records import RecordStore


class Feedback:
    """The handler.

    "Wrong" quarantines the entry at once, for every prompt and both tiers, and takes its aliases;
    the policy's generation stays. It lives again when an answer is put in its place, or by the
    "right" of an admin. The "right" of anybody else is recorded, and ends no quarantine: of two
    callers who disagree, the one who was served something wrong is believed.

    From the role `feedback` a verdict acts within the scope that it names (none is the empty one),
    and an entry of another scope is not found. An admin's acts on every scope, or on the named one.
    """

    def __init__(self, records: RecordStore, telemetry: Telemetry, bounds: Bounds) -> None:
        self._records = records
        self._telemetry = telemetry
        self._bounds = bounds

    async def __call__(self, call: Call) -> Reply:
        request = codec.read_feedback(call.body, call.format)
        check_feedback(request)
        entry_id = selected_entry(request.entry_id)
        vector = None if request.embedding is None else read_vector(request.embedding)
        call.require("feedback")
        tenant, admin = call.caller.tenant, call.caller.may("admin")
        verdict = NewVerdict(
            tenant=tenant,
            entry_id=entry_id,
            scope=request.scope if admin else request.scope or "",
            wrong=request.verdict == "wrong",
            source=call.caller.name,
            lifts=admin,
            prompt_text=None
            if request.prompt_text is None
            else request.prompt_text[:MAX_PROMPT_CHARS],
            vector=vector,
            note=request.note or "",
        )
        given = await self._bounds.run(self._records.give_verdict(verdict))
        if given is None:
            raise entry_not_found()
        policy_id, quarantined = given
        self._telemetry.judged(tenant, policy_id, request.verdict, "admin" if admin else "data")
        return Reply(
            FeedbackReply(entry_id=str(entry_id), verdict=request.verdict, quarantined=quarantined)
        )
