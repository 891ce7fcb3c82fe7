"""`/metrics`: what was done, under labels that stay bounded."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest

from cachesvc.service.counting import Counted
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Service, ServiceTLS, Settings
from tests.service.serving import KEY, NOWHERE, Api, Running, execute

if TYPE_CHECKING:
    from collections.abc import Iterator

NORTH, NEAR, EAST = [1.0, 0.0, 0.0], [0.95, 0.3122499, 0.0], [0.0, 1.0, 0.0]
PARAPHRASE = "cd" * 32


@pytest.fixture
def fresh(database_url: str) -> Iterator[Api]:
    """Calls to a service that has counted nothing yet."""
    with Running(database_url) as service, closing(Api(service.url)) as api:
        yield api


def lookups(api: Api, policy: str) -> dict[str, float]:
    """outcome/tier/reason of a policy's lookups."""
    found = {}
    for sample, value in api.metrics().items():
        name, _, labels = sample.partition("{")
        if name == "cachesvc_lookups_total" and f'policy="{policy}"' in labels:
            told = dict(pair.split("=") for pair in labels.rstrip("}").split(","))
            told = {name: text.strip('"') for name, text in told.items()}
            found[f"{told['outcome']}/{told['tier']}/{told['reason']}"] = value
    return found


def test_every_outcome_is_counted_under_its_reason(fresh: Api) -> None:
    policy = fresh.policy(threshold=0.9)
    entry = fresh.put(policy, exact_key=KEY, embedding=NORTH)["entry_id"]
    fresh.lookup(policy, exact_key=KEY)
    fresh.lookup(policy, exact_key=PARAPHRASE, embedding=NEAR)
    fresh.wait_for_alias(entry)
    fresh.lookup(policy, exact_key=PARAPHRASE)
    fresh.lookup(policy, embedding=EAST)
    fresh.lookup(policy, exact_key="ef" * 32)
    fresh.change(policy, threshold=0.9, mode="off")
    fresh.lookup(policy, embedding=EAST)
    assert lookups(fresh, policy) == {
        "hit/exact/exact": 1,
        "hit/semantic/semantic": 1,
        "hit/exact/alias": 1,
        "miss/none/below_threshold": 1,
        "miss/none/no_entry": 1,
        "bypass/none/no_policy": 1,
    }


def test_shadow_counts_what_it_would_have_been(fresh: Api) -> None:
    policy = fresh.policy(mode="shadow")
    fresh.put(policy, exact_key=KEY, embedding=NORTH, prompt_tokens=5)
    fresh.lookup(policy, exact_key=KEY)
    fresh.lookup(policy, embedding=NORTH)
    fresh.lookup(policy, embedding=EAST)
    assert lookups(fresh, policy) == {
        "shadow/exact/exact": 1,
        "shadow/semantic/semantic": 1,
        "shadow/none/below_threshold": 1,
    }
    assert not [name for name in fresh.metrics() if "tokens_saved" in name and policy in name]


def test_two_calls_of_one_lookup_are_counted_once(fresh: Api) -> None:
    policy = fresh.policy()
    fresh.put(policy, exact_key=KEY, embedding=NORTH)
    for key, vector in ((PARAPHRASE, NORTH), ("ef" * 32, EAST)):
        assert not fresh.lookup(policy, exact_key=key)["hit"]
        fresh.lookup(policy, exact_key=key, embedding=vector, after_exact=True)
    fresh.lookup(policy, exact_key="01" * 32)
    assert lookups(fresh, policy) == {
        "hit/semantic/semantic": 1,
        "miss/none/below_threshold": 1,
        "miss/none/no_entry": 1,
    }


def test_puts_tokens_and_similarities_are_told(fresh: Api) -> None:
    policy = fresh.policy(threshold=0.9, max_body_bytes=100)
    fresh.put(policy, exact_key=KEY, embedding=NORTH, prompt_tokens=5, completion_tokens=6)
    fresh.put(policy, exact_key=KEY, response="x" * 200)
    fresh.put(policy, exact_key=KEY, generation=0)
    fresh.lookup(policy, exact_key=KEY)
    fresh.lookup(policy, embedding=NEAR)
    fresh.lookup(policy, embedding=EAST)
    fresh.lookup(policy, exact_key=PARAPHRASE)
    told, labels = fresh.metrics(), f'policy="{policy}"'
    tenant = 'tenant="default"'

    def one(name: str, *more: str) -> float:
        return told[f"cachesvc_{name}{{{','.join(sorted((*more, labels, tenant)))}}}"]

    assert one("puts_total", 'result="stored"') == 1
    assert one("puts_total", 'result="too_large"') == 1
    assert one("puts_total", 'result="stale_generation"') == 1
    assert one("tokens_saved_total", 'kind="prompt"') == 10
    assert one("tokens_saved_total", 'kind="completion"') == 12
    assert one("entries") == 1
    assert one("similarity_count") == 2
    assert one("similarity_bucket", 'le="0.96"') == 2
    assert one("similarity_bucket", 'le="0.94"') == 1
    for stage, times in (("total", 4), ("exact", 2), ("nearest", 2), ("decide", 2)):
        assert told[f'cachesvc_lookup_seconds_count{{stage="{stage}"}}'] == times


def test_a_policy_that_does_not_exist_makes_no_label(fresh: Api) -> None:
    body = {"policy_id": "invented", "exact_key": KEY, "response": 1}
    for path in ("/cache/lookup", "/cache/put"):
        assert fresh.call("POST", path, body).status_code == 404
    assert "invented" not in str(fresh.metrics())


def test_entries_are_absent_while_the_database_is_away(database_url: str) -> None:
    with Running(database_url) as service, closing(Api(service.url)) as api:
        execute(database_url, "ALTER TABLE entries RENAME TO hidden")
        told = httpx.get(f"{service.url}/metrics")
        assert told.status_code == 200
        assert "cachesvc_entries{" not in told.text
        execute(database_url, "ALTER TABLE hidden RENAME TO entries")
        policy = api.policy()
        name = f'cachesvc_entries{{policy="{policy}",tenant="default"}}'
        assert api.metrics()[name] == 0
        api.put(policy, exact_key=KEY)
        assert api.metrics()[name] == 0  # counted at most every 15 s


def test_a_failure_is_counted_by_its_cause() -> None:
    with Running(NOWHERE) as service, closing(Api(service.url)) as api:
        api.call("POST", "/cache/lookup", {"policy_id": "p", "exact_key": KEY})
        assert api.metrics()['cachesvc_fail_open_total{cause="unavailable"}'] == 1


def test_the_format_is_that_of_prometheus(fresh: Api) -> None:
    reply = fresh.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE cachesvc_lookups_total counter" in reply.text
    assert "_created" not in reply.text


TLS = ServiceTLS(cert_file="c", key_file="k", client_ca_file="a")


@pytest.mark.parametrize(
    ("service", "labelled"),
    [
        (Service(), True),
        (Service(tls=TLS), False),
        (Service(tls=TLS, metrics_tenants=True), True),
    ],
)
def test_tenants_are_labels_only_where_that_tells_no_tenant_of_another(
    service: Service, labelled: bool
) -> None:
    telemetry = Telemetry(Settings(service=service))
    for tenant in ("acme", "globex"):
        telemetry.looked_up(Counted(tenant, "p", "miss", "none", "no_entry"))
    samples = [s for m in telemetry.registry.collect() for s in m.samples if "lookups" in s.name]
    assert [s.labels.get("tenant") for s in samples] == (["acme", "globex"] if labelled else [None])
    assert sum(s.value for s in samples) == 2


def test_labels_are_bounded() -> None:
    telemetry = Telemetry(Settings())
    for number in range(2000):
        telemetry.looked_up(Counted(f"t{number % 70}", f"p{number}", "hit", "exact", "exact"))
    samples = [s for m in telemetry.registry.collect() for s in m.samples if "lookups" in s.name]
    assert len(samples) == 1001
    assert len({s.labels["tenant"] for s in samples}) == 51
    assert sum(s.value for s in samples) == 2000
