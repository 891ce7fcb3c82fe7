"""`cachesvc policy apply`: the service's policies become what a file says, or nothing changes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from cachesvc import CacheClient
from cachesvc.commands.policy_apply import FieldChange, plan_of, read_policies
from cachesvc.core.policy import Policy, resolve
from cachesvc.errors import ConfigError
from tests.commands.test_commands import run
from tests.end_to_end.stack import COMMAND, Up, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = """
[policy.default]
threshold = 0.95
semantic_ttl_seconds = 60

[policy."team.support"]
applies_to = "model:gpt-4o"
bypass_on = [{ header = "x-debug", equals = "1" }]
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    environment = {"CACHESVC_EMBED_PROVIDER": "none"}
    with Up(tmp_path_factory.mktemp("up"), "--demo", environment=environment) as running:
        yield running


@pytest.fixture
def file(up: Up, tmp_path: Path) -> Path:
    """A file; the service has the policy `default` as it was made, and `old`."""
    with CacheClient(up.service) as client:
        for policy in client.policies():
            client.delete_policy(policy.id)
        client.save_policy("default", {"ttl_seconds": 600})
        client.save_policy("old", {})
    path = tmp_path / "policies.toml"
    path.write_text(FILE, "utf-8")
    return path


def there(up: Up) -> dict[str, Policy]:
    with CacheClient(up.service) as client:
        return {policy.id: policy for policy in client.policies()}


def test_a_dry_run_shows_every_field_that_differs_and_changes_nothing(up: Up, file: Path) -> None:
    before = there(up)
    code, out, err = run(up, "policy", "apply", str(file), "--dry-run", "--prune")
    assert code == 0, err
    assert out.splitlines() == [
        "~ default",
        "    threshold: 0.92 → 0.95",
        "    threshold_floor: 0.92 → 0.95",
        "    ttl_seconds: 600 → 3600",
        "    semantic_ttl_seconds: 600 → 60",
        "+ team.support",
        '    applies_to: "model:gpt-4o"',
        '    bypass_on: [{"header":"x-debug","equals":"1"}]',
        "- old",
        "dry run: nothing was changed",
    ]
    assert there(up) == before


def test_what_differs_is_applied_and_then_nothing_does(up: Up, file: Path) -> None:
    code, out, err = run(up, "policy", "apply", str(file))
    assert code == 0, err
    assert out.splitlines()[-2:] == ["not in the file, and kept: old", "applied"]
    now = there(up)
    assert set(now) == {"default", "old", "team.support"}
    assert (now["default"].threshold, now["default"].ttl_seconds) == (0.95, 3600)
    assert now["team.support"].applies_to == "model:gpt-4o"
    code, out, _ = run(up, "policy", "apply", str(file), "--json")
    assert code == 0
    assert json.loads(out) == {"changes": [], "kept": ["old"], "applied": True}


def test_the_proxy_follows_within_two_seconds(up: Up, file: Path) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "followed?"}]}

    def names() -> set[str]:
        answer = httpx.post(f"{up.proxy}/v1/chat/completions", json=asked, trust_env=False)
        assert answer.status_code == 200
        return {name for name in answer.headers if name in ("x-aisix-cache", "x-ai-cache-status")}

    for text, name in (('header_names = "aisix"', "x-aisix-cache"), ("", "x-ai-cache-status")):
        file.write_text(f"[policy.default]\n{text}", "utf-8")
        assert run(up, "policy", "apply", str(file), "--prune")[0] == 0
        applied = time.monotonic()
        while names() != {name}:
            assert time.monotonic() - applied < 2


def test_prune_deletes_what_the_file_does_not_name(up: Up, file: Path) -> None:
    code, out, err = run(up, "policy", "apply", str(file), "--prune", "--json")
    assert code == 0, err
    actions = {change["policy_id"]: change["action"] for change in json.loads(out)["changes"]}
    assert actions == {"default": "change", "team.support": "add", "old": "remove"}
    assert set(there(up)) == {"default", "team.support"}


@pytest.mark.parametrize(
    ("answer", "arguments", "left"),
    [("n", (), True), ("y", (), False), ("n", ("--yes",), False)],
)
def test_on_a_terminal_it_asks_before_it_deletes(
    up: Up, file: Path, answer: str, arguments: tuple[str, ...], left: bool
) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            [COMMAND, "policy", "apply", str(file), "--prune", *arguments],
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**clean_environment(), "CACHESVC_PROXY_SERVICE_URL": up.service},
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode == 1) == left
    assert ("old" in there(up)) == left
    assert ("team.support" in there(up)) != left  # whoever says no changes nothing at all
    assert ("with everything they hold" in done.stderr) == (not arguments)


def test_one_bad_value_stops_before_anything_is_applied(up: Up, file: Path) -> None:
    before = there(up)
    file.write_text(FILE.replace('"model:gpt-4o"', '"route:x"'), "utf-8")
    code, out, err = run(up, "policy", "apply", str(file), "--prune")
    assert (code, out) == (2, "")
    assert str(file) in err
    assert "policy.team.support.applies_to" in err
    assert '"model:<name>"' in err
    assert len(err.splitlines()) == 1
    assert there(up) == before


def test_a_service_that_is_away_is_exit_code_1(file: Path) -> None:
    where = ("--service-url", "http://127.0.0.1:9")
    assert run(None, "policy", "apply", str(file), *where)[0] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "policy: must be tables"),
        ("[policy", "is not TOML"),
        ("policy = 1", "policy: must be tables"),
        ("[proxy]\n[policy.p]", "proxy: is not known"),
        ("policy.p = 1", "policy.p: must be a table"),
        ('[policy."a b"]', "policy.a b: the id must match"),
        ("[policy.p]\nthreshold = 2", "policy.p.threshold: is 2.0; must be 0 to 1"),
        ("[policy.p]\nthreshold = inf", "policy.p.threshold: is inf; must be 0 to 1"),
        ('[policy.p]\nthreshold = "high"', "policy.p.threshold: expected float, got str"),
        ("[policy.p]\nname = 1979-05-27T07:32:00Z", "policy.p.name: expected str"),
        ("[policy.p]\nthresold = 0.9", "policy.p.thresold: is no field of a policy"),
        ('[policy.p]\nextract = "messages"', "policy.p.extract: is no JSONPath"),
        ('[policy.p]\nembed = "A"', "policy.p.embed"),
        ('[policy.p]\nid = "q"', "policy.p.id: is 'q'"),
        ("[policy.p]\nttl_seconds = 99999999999999999999", "policy.p: a number is too large"),
        ("[policy.p]\n[policy.p]", "is not TOML"),
    ],
)
def test_what_is_wrong_is_told_by_file_policy_field_and_bound(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_policies("p.toml", text.encode())
    assert refusal.value.message.startswith("p.toml: ")
    assert told in refusal.value.message


def test_defaults_and_read_only_fields_are_no_difference() -> None:
    full: dict[str, Any] = msgspec.to_builtins(resolve(Policy(threshold=0.8), "p", 7))
    now = resolve(Policy(threshold=0.8), "p", 9)
    for fields in ({"threshold": 0.8}, full):
        assert plan_of({"p": now}, {"p": fields}, prune=False).changes == []
    (change,) = plan_of({"p": now}, {"p": {}}, prune=False).changes
    assert change.fields["threshold"] == FieldChange(0.8, 0.92)
    assert set(change.fields) == {"threshold", "threshold_floor"}
