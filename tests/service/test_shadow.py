"""Shadow: every lookup that would have hit is recorded, off the reply path, and bounded."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from cachesvc.core.model import Answer, Candidate, Hit, Reason, Tier
from cachesvc.core.policy import Policy
from cachesvc.errors import StoreUnavailable
from cachesvc.service.asked import read_asked
from cachesvc.service.judged import Judged
from cachesvc.service.shadow import _WAITING_AT_MOST, Shadow
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Settings
from cachesvc.wire import LookupRequest
from tests.service.serving import KEY, Api, fetch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesvc.store.records import ShadowHit

NORTH, NEAR, EAST = [1.0, 0.0, 0.0], [0.95, 0.3122499, 0.0], [0.0, 1.0, 0.0]
PARAPHRASE = "cd" * 32


def shadow_hits(api: Api, policy: str) -> int:
    (one,) = (p for p in api.ok("GET", "/stats")["policies"] if p["policy_id"] == policy)
    return int(one["shadow_hits"])


def wait_for(api: Api, policy: str, expected: int) -> None:
    deadline = time.monotonic() + 5
    while shadow_hits(api, policy) != expected:
        assert time.monotonic() < deadline, shadow_hits(api, policy)


def shadowed(api: Api, **fields: Any) -> tuple[str, str]:
    policy = api.policy(mode="shadow", threshold=0.9, **fields)
    put = api.put(policy, exact_key=KEY, embedding=NORTH, scope="s", prompt_text="stored")
    return policy, str(put["entry_id"])


def test_what_would_have_hit_is_recorded_with_who_asked_what(
    api: Api, module_database_url: str
) -> None:
    policy, entry = shadowed(api)
    asked = {"scope": "s", "prompt_text": "asked\x00?"}
    for fields in (
        {"exact_key": KEY, **asked},
        {"exact_key": PARAPHRASE, "embedding": NEAR, "after_exact": True, **asked},
        {"embedding": EAST, **asked},
        {"exact_key": "ef" * 32, **asked},
        {"exact_key": KEY, **asked, "retry": True},
    ):
        assert not api.lookup(policy, **fields)["hit"]
    wait_for(api, policy, 2)
    rows = fetch(
        module_database_url,
        "SELECT scope, exact_key, entry_id::text, tier, similarity, prompt_text FROM shadow_hits"
        f" WHERE policy_id = '{policy}' ORDER BY created_at",
    )
    assert rows == [
        ("s", bytes.fromhex(KEY), entry, "exact", 1.0, b"asked\x00?"),
        (
            "s",
            bytes.fromhex(PARAPHRASE),
            entry,
            "semantic",
            pytest.approx(0.95, abs=1e-3),
            rows[1][5],
        ),
    ]


def test_two_calls_of_one_lookup_are_one_shadow_hit(api: Api) -> None:
    policy, _ = shadowed(api)
    for vector in (NORTH, EAST):
        api.lookup(policy, exact_key=KEY, scope="s")
        api.lookup(policy, exact_key=KEY, scope="s", embedding=vector, after_exact=True)
    wait_for(api, policy, 2)
    labels = f'policy="{policy}",reason="exact",tenant="default",tier="exact"'
    assert api.metrics()[f'cachesvc_lookups_total{{outcome="shadow",{labels}}}'] == 2


def test_nothing_is_recorded_of_a_policy_that_serves(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY)
    api.lookup(policy, exact_key=KEY)
    other, _ = shadowed(api)
    api.lookup(other, exact_key=KEY, scope="s")
    wait_for(api, other, 1)
    assert shadow_hits(api, policy) == 0


@pytest.mark.parametrize(
    ("selector", "left"),
    [
        ({}, 0),
        ({"scope": "s"}, 0),
        ({"scope": "other"}, 1),
        ({"entry_id": True}, 0),
        ({"prompt_text": "asked"}, 0),
        ({"prompt_text": "another"}, 1),
        ({"older_than_seconds": 1000}, 1),
        ({"older_than_seconds": 0}, 0),
        ({"tags": ["none"]}, 1),
    ],
)
def test_a_purge_takes_what_it_selects_of_the_record(
    api: Api, selector: dict[str, Any], left: int
) -> None:
    policy, entry = shadowed(api)
    api.lookup(policy, exact_key=KEY, scope="s", prompt_text="asked")
    wait_for(api, policy, 1)
    if "entry_id" in selector:
        selector = {"entry_id": entry}
    api.purge(policy_id=policy, **selector, dry_run=True)
    assert shadow_hits(api, policy) == 1
    api.purge(policy_id=policy, **selector)
    assert shadow_hits(api, policy) == left


def test_deleting_an_entry_or_a_policy_takes_the_record_along(
    api: Api, module_database_url: str
) -> None:
    policy, entry = shadowed(api)
    count = f"SELECT count(*) FROM shadow_hits WHERE policy_id = '{policy}'"
    api.lookup(policy, exact_key=KEY, scope="s")
    wait_for(api, policy, 1)
    api.call("DELETE", f"/cache/entries/{entry}")
    assert fetch(module_database_url, count) == [(0,)]
    api.put(policy, exact_key=KEY, scope="s")
    api.lookup(policy, exact_key=KEY, scope="s")
    wait_for(api, policy, 1)
    api.call("DELETE", f"/policies/{policy}")
    assert fetch(module_database_url, count) == [(0,)]


class Records:
    """Records that cannot be written, or that are kept in a list."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away
        self.batches: list[int] = []

    async def keep_shadow_hits(self, hits: Sequence[ShadowHit]) -> None:
        if self.away:
            raise StoreUnavailable
        self.batches.append(len(hits))


def hit(shadow: Shadow, number: int = 0, prompt: str = "secret words") -> None:
    now = datetime.now(timezone.utc)
    candidate = Candidate(uuid4(), Answer(b"", None), now, now)
    request = LookupRequest(policy_id="p", exact_key=f"{number:064x}", prompt_text=prompt)
    policy = Policy(id="p", mode="shadow")
    outcome = Hit(Reason.EXACT, Tier.EXACT, candidate)
    shadow.saw(read_asked("t", request), Judged(outcome, policy, 1, 1, now))


def dropped(telemetry: Telemetry) -> float | None:
    return telemetry.registry.get_sample_value("cachesvc_fail_open_total", {"cause": "shadow"})


async def test_they_are_written_in_batches_and_what_finds_no_place_is_counted() -> None:
    records, telemetry = Records(), Telemetry(Settings())
    shadow = Shadow(records, telemetry)  # type: ignore[arg-type]
    for number in range(_WAITING_AT_MOST + 3):
        hit(shadow, number)
    assert dropped(telemetry) == 3
    await shadow.drain(5)
    assert records.batches == [500, 500, 500, 500]
    hit(shadow)
    await shadow.drain(5)
    assert records.batches[4:] == [1]


async def test_a_database_that_is_away_costs_the_record_and_tells_no_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    records, telemetry = Records(away=True), Telemetry(Settings())
    shadow = Shadow(records, telemetry)  # type: ignore[arg-type]
    hit(shadow)
    assert "secret" not in repr(shadow._batches._waiting)
    await shadow.drain(5)
    assert dropped(telemetry) == 1
    assert "recording shadow hits" in caplog.text
    assert "secret" not in caplog.text


async def test_draining_ends_though_the_database_does_not_answer() -> None:
    class Frozen(Records):
        async def keep_shadow_hits(self, hits: Sequence[ShadowHit]) -> None:
            await asyncio.Event().wait()

    shadow = Shadow(Frozen(), Telemetry(Settings()))  # type: ignore[arg-type]
    hit(shadow)
    began = time.monotonic()
    await shadow.drain(0.1)
    assert time.monotonic() - began < 2
