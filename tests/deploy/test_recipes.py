"""What the recipes tell a reader to type is what cachesvc takes; what they point to is there."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cachesvc.core.policy import read_policy
from tests.deploy import recipes
from tests.deploy.processes import DEPLOY

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted(DEPLOY.glob("*.md"))
GATEWAYS = [page for page in PAGES if page.stem in ("litellm", "nginx", "apisix", "higress")]
_CONTINUED = re.compile(r"\\\n\s*")


def _commands() -> list[list[str]]:
    """Every `$ cachesvc …` of a page, every `cachesvc …` in a comment of a recipe's file."""
    found: list[list[str]] = []
    for path in (*PAGES, *DEPLOY.glob("litellm/*.yaml"), DEPLOY / "compose.yaml"):
        text = _CONTINUED.sub("", path.read_text("utf-8"))
        for line in re.findall(
            r"^(?:\$|#  ) (?:docker compose .* )?(cachesvc|operator) (.+)$", text, re.M
        ):
            words = shlex.split(line[1].partition(" > ")[0], comments=True)
            found.append(words)
    return found


COMMANDS = _commands()


def test_the_recipes_are_read() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_is_taken(words: list[str]) -> None:
    context = recipes.parsed(words)
    if words[:2] != ["policy", "set"]:
        return
    fields: dict[str, Any] = {}
    for field in context.params["fields"]:
        name, _, value = field.partition("=")
        try:
            fields[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            fields[name] = value
    read_policy(msgspec.json.encode(fields), context.params["policy_id"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", GATEWAYS, ids=lambda page: page.name)
def test_a_recipe_for_a_gateway_that_replaces_credentials_says_to_set_scope_headers(
    page: Path,
) -> None:
    assert "policy set default 'scope_headers=[" in page.read_text("utf-8")


@pytest.mark.parametrize("name", ["aisix", "apisix", "higress"])
def test_what_was_not_tried_is_not_claimed(name: str) -> None:
    assert "**Not tried" in (DEPLOY / f"{name}.md").read_text("utf-8")
