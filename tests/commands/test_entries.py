"""`cachesvc entries` against a real service: a table for people, JSON for programs."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from cachesvc.cli import cli
from cachesvc.errors import ConfigError, ServiceError
from tests.postgres import _TEMPLATE, _own_database
from tests.service.serving import Api, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.store.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def service(postgres: EmbeddedPostgres) -> Iterator[Running]:
    for url in _own_database(postgres, _TEMPLATE):
        with Running(url) as running:
            yield running


@pytest.fixture(scope="module")
def policy(service: Running) -> str:
    with closing(Api(service.url)) as api:
        made = api.policy()
        for n in range(5):
            tags = ["odd"] if n % 2 else ["even", "all"]
            prompt = f"Question\n{n} " + "x" * 100
            api.put(made, exact_key=f"{n:064x}", prompt_text=prompt, tags=tags, model="gpt")
    return made


def run(service: Running, *arguments: str) -> Any:
    environment = {"CACHESVC_PROXY_SERVICE_URL": service.url}
    done = CliRunner().invoke(cli, ["entries", *arguments], env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def prompts(service: Running, *arguments: str) -> list[str]:
    told = json.loads(run(service, *arguments, "--json").stdout)
    return [entry["prompt_text"].split()[1] for entry in told["entries"]]


def test_filters_are_flags(service: Running, policy: str) -> None:
    assert prompts(service, "--policy", policy) == ["4", "3", "2", "1", "0"]
    assert prompts(service, "--tag", "even", "--tag", "all") == ["4", "2", "0"]
    assert prompts(service, "--prompt", "QUESTION\n3") == ["3"]
    assert prompts(service, "--state", "expired") == []
    assert prompts(service, "--tier", "semantic") == []
    assert prompts(
        service, "--model", "gpt", "--scope", "", "--older-than", "0", "--limit", "1"
    ) == ["4"]


def test_pages_are_followed_up_to_the_limit(
    service: Running, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachesvc.commands.entries.MAX_PAGE", 2)
    assert prompts(service, "--policy", policy) == ["4", "3", "2", "1", "0"]
    told = json.loads(run(service, "--policy", policy, "--limit", "3", "--json").stdout)
    assert len(told["entries"]) == 3
    assert told["next_cursor"]


def test_the_table_is_one_line_an_entry(service: Running, policy: str) -> None:
    done = run(service, "--policy", policy, "--limit", "2")
    lines = [line for line in done.stdout.splitlines() if policy in line]
    assert len(lines) == 2
    assert "Question 4 x" in lines[0]
    assert "live" in lines[0]
    assert "there are more" in done.stderr


def test_one_entry_is_shown_whole(service: Running, policy: str) -> None:
    told = json.loads(run(service, "--policy", policy, "--limit", "1", "--json").stdout)
    entry = told["entries"][0]["entry_id"]
    assert json.loads(run(service, entry).stdout)["response"] == {"answer": 42}
    with pytest.raises(ServiceError, match="entry not found"):
        run(service, "00000000-0000-0000-0000-000000000000")
    with pytest.raises(ConfigError, match="not both"):
        run(service, entry, "--policy", policy)


def test_help_shows_an_example_and_wrong_flags_are_refused(service: Running) -> None:
    assert "cachesvc entries --policy default" in run(service, "--help").stdout
    assert run(service, "--limit", "0").exit_code == 2
    assert run(service, "--state", "dead").exit_code == 2
