"""Reads a Dockerfile as far as the tests ask: stages, and the instructions of each."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Stage:
    """A stage, by its name, what it is made from, and its (instruction, argument) pairs."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [argument for name, argument in self.steps if name == instruction]


@dataclass
class Dockerfile:
    arguments: dict[str, str]
    stages: dict[str, Stage]

    def lineage(self, name: str) -> list[Stage]:
        """A stage and those it is made from, itself first."""
        stage = self.stages[name]
        below = self.lineage(stage.base) if stage.base in self.stages else []
        return [stage, *below]

    def last(self, name: str, instruction: str) -> str:
        """What holds in an image: the nearest of an instruction."""
        return next(found[-1] for s in self.lineage(name) if (found := s.all(instruction)))

    def environment(self, name: str) -> dict[str, str]:
        """ENV of an image."""
        made: dict[str, str] = {}
        for stage in reversed(self.lineage(name)):
            for line in stage.all("ENV"):
                made |= dict(re.findall(r"(\w+)=(\S+)", line))
        return made

    def base(self, name: str) -> str:
        """The image from elsewhere that a stage goes back to."""
        base = self.lineage(name)[-1].base
        for argument, value in self.arguments.items():
            base = base.replace(f"${{{argument}}}", value)
        return base


def read(path: Path) -> Dockerfile:
    """Comments dropped, continued lines joined."""
    lines = [ln for ln in path.read_text("utf-8").splitlines() if not re.match(r"\s*#|\s*$", ln)]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    read_so_far = Dockerfile({}, {})
    stage: Stage | None = None
    for line in whole.splitlines():
        name, argument = line.strip().split(maxsplit=1)
        if name == "FROM":
            found = re.fullmatch(r"(\S+) AS (\S+)", argument)
            assert found, f"a stage without a name: {line}"
            stage = read_so_far.stages[found[2]] = Stage(found[2], found[1])
        elif stage is None:
            assert name == "ARG", f"before the first stage: {line}"
            key, _, value = argument.partition("=")
            read_so_far.arguments[key] = value
        else:
            stage.steps.append((name, argument))
    return read_so_far


def words(argument: str) -> list[str]:
    """The exec form, `["a", "b"]`; a shell form is refused."""
    read_words: list[str] = json.loads(argument)
    assert all(isinstance(word, str) for word in read_words)
    return read_words
