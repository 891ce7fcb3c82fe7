"""The operator's commands against a real service."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.stack import COMMAND, Up, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    environment = {"CACHESVC_EMBED_PROVIDER": "none"}
    with Up(tmp_path_factory.mktemp("up"), "--demo", environment=environment) as running:
        yield running


def run(up: Up | None, *arguments: str, data_dir: Path | None = None) -> tuple[int, str, str]:
    environment = clean_environment()
    if up is not None:
        environment["CACHESVC_PROXY_SERVICE_URL"] = up.service
    if data_dir is not None:
        environment["CACHESVC_DATA_DIR"] = str(data_dir)
    done = subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr.strip()


def test_up_made_the_policy_default(up: Up) -> None:
    code, out, _ = run(up, "policy", "list", "--json")
    assert code == 0
    assert [policy["id"] for policy in json.loads(out)] == ["default"]


def test_a_policy_is_made_changed_shown_and_deleted(up: Up) -> None:
    code, out, _ = run(up, "policy", "set", "trial", "threshold=0.8", 'tiers=["exact"]')
    assert code == 0
    assert json.loads(out)["threshold"] == 0.8
    run(up, "policy", "set", "trial", "threshold=0.7", "name=A trial")
    shown = json.loads(run(up, "policy", "get", "trial")[1])
    assert (shown["threshold"], shown["tiers"], shown["name"]) == (0.7, ["exact"], "A trial")
    assert run(up, "policy", "delete", "trial")[:2] == (0, "deleted trial\n")
    assert run(up, "policy", "get", "trial")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("policy", "set", "trial", "threshold=2"), "threshold"),
        (("policy", "set", "trial", "thresold=0.9"), "thresold"),
        (("policy", "set", "trial", "threshold"), "FIELD=VALUE"),
        (("policy", "get", "nothing"), "cache_policy not found"),
        (("policy", "delete", "nothing"), "cache_policy not found"),
        (("purge",), "--policy"),
        (("purge", "--policy", "nothing"), "cache_policy not found"),
    ],
)
def test_what_is_refused_is_told_in_one_line(up: Up, arguments: tuple[str, ...], told: str) -> None:
    code, out, err = run(up, *arguments)
    assert code in (1, 2)
    assert told in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_stats_and_purge_tell_what_is_there_and_take_it_away(up: Up) -> None:
    from cachesvc import CacheClient
    from cachesvc.wire import LookupRequest, PutRequest

    key = "ab" * 32
    with CacheClient(up.service) as cache:
        put = PutRequest(
            policy_id="default", exact_key=key, scope="s", body=b"\x00hi", media_type="text/plain"
        )
        assert cache.put(put).stored
        found = cache.lookup(LookupRequest(policy_id="default", exact_key=key, scope="s"))
        assert (found.hit, found.body, found.media_type) == (True, b"\x00hi", "text/plain")
    code, out, _ = run(up, "stats", "--json")
    assert code == 0
    (row,) = (p for p in json.loads(out)["policies"] if p["policy_id"] == "default")
    assert row["entries"] >= 1
    assert "default" in run(up, "stats")[1]
    assert "1 entries match" in run(up, "purge", "--scope", "s", "--dry-run")[1]
    assert run(up, "purge", "--scope", "s")[1] == "1 of 1 matching entries removed\n"
    with CacheClient(up.service) as cache:
        again = cache.lookup(LookupRequest(policy_id="default", exact_key=key, scope="s"))
        assert not again.hit
        assert again.generation == found.generation + 1


def test_without_a_service_the_line_says_where_it_was_looked_for() -> None:
    code, _, err = run(None, "stats", "--service-url", "http://127.0.0.1:9")
    assert code == 1
    assert "http://127.0.0.1:9" in err
    assert len(err.splitlines()) == 1


def test_the_scope_of_a_key_is_what_the_proxy_sends(up: Up, tmp_path: Path) -> None:
    (tmp_path / "scope_secret").write_text("a secret of this test\n")
    arguments = ("policy", "scope", "-H", "Authorization: Bearer sk-1", "default")
    code, out, _ = run(up, *arguments, data_dir=tmp_path)
    from cachesvc.core.policy import Policy
    from cachesvc.core.scope import scope_of

    assert code == 0
    expected = scope_of({"authorization": ["Bearer sk-1"]}, Policy(), b"a secret of this test")
    assert out.strip() == expected
    assert "sk-1" not in out
    accented = ("policy", "scope", "-H", "Authorization: Bearer jos\u00e9", "default")
    code, out, _ = run(up, *accented, data_dir=tmp_path)
    as_sent = "Bearer jos\u00e9".encode().decode("latin-1")
    assert out.strip() == scope_of({"authorization": [as_sent]}, Policy(), b"a secret of this test")


def test_the_database_is_migrated_down_and_up_from_the_command_line(tmp_path: Path) -> None:
    for arguments, told in (
        (("migrate", "up"), "the schema is at 0"),
        (("migrate", "down", "base", "--yes"), "the schema is at none"),
        (("migrate", "status"), "run cachesvc migrate"),
        (("migrate", "up"), "the schema is at 0"),
        (("migrate", "index", "--dimensions", "100"), "done"),
        (("migrate", "index", "--dimensions", "100"), "it was there already"),
    ):
        code, out, err = run(None, *arguments, data_dir=tmp_path)
        assert code == 0, err
        assert told in out
    code, out, _ = run(None, "migrate", "status", "--json", data_dir=tmp_path)
    assert 100 in json.loads(out)["indexed_dimensions"]


@pytest.mark.parametrize(
    "verb", [("status",), ("vacuum",), ("reindex",), ("down", "base", "--yes")]
)
def test_whoever_asks_for_another_directorys_database_makes_none(
    tmp_path: Path, verb: tuple[str, ...]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    code, _, err = run(None, "migrate", *verb, data_dir=elsewhere)
    assert code != 0
    assert str(elsewhere) in err
    assert "--data-dir" in err
    assert not (elsewhere / "postgres").exists()


def test_the_doctor_finds_what_runs_and_what_does_not(up: Up, tmp_path: Path) -> None:
    service, proxy = (url.removeprefix("http://") for url in (up.service, up.proxy))
    data_dir = str(up.banner.split("data")[1].split()[0])
    arguments = ("--data-dir", data_dir, "--service-listen", service, "--proxy-listen", proxy)
    code, out, err = run(up, "doctor", "--json", *arguments)
    states = {finding["what"]: finding["state"] for finding in json.loads(out)}
    assert code == 0, (out, err)
    assert set(states.values()) == {"ok"}, states
    assert {"database", "schema", "pgvector", "index", "service", "proxy"} <= set(states)
    code, out, _ = run(None, "doctor", "--json", "--database-url", "postgresql://127.0.0.1:9/x")
    states = {finding["what"]: finding["state"] for finding in json.loads(out)}
    assert code == 1
    assert states["database"] == "fail"
