"""The LiteLLM proxy, started with a configuration of the recipe; in a venv of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.deploy.processes import DEPLOY, ROOT, Program, changed, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PROGRAM = ROOT / ".clients" / "litellm" / "bin" / "litellm"
ABSENT = "LiteLLM is not installed (.clients/litellm)"
MASTER_KEY = "sk-master-of-the-test"
PROVIDER_KEY = "sk-of-the-provider"
# Stands for LiteLLM's database of keys, which would need a Postgres and Prisma's engine.
_TWO_KEYS = """
from litellm.proxy._types import UserAPIKeyAuth


async def known(request, api_key):
    if api_key not in ("sk-alice", "sk-bob"):
        raise ValueError("an unknown key")
    return UserAPIKeyAuth(api_key=api_key)
"""


@contextmanager
def litellm(
    folder: Path, recipe: str, changes: Mapping[str, str], *, two_keys: bool = False
) -> Iterator[str]:
    """The recipe at work, its addresses replaced; yields its URL.

    With `two_keys` the keys `sk-alice` and `sk-bob` are known, instead of the master's alone.
    """
    folder.mkdir()
    config = changed((DEPLOY / "litellm" / recipe).read_text("utf-8"), changes)
    if two_keys:
        assert config.rstrip().endswith("master_key: os.environ/LITELLM_MASTER_KEY")
        config += "  custom_auth: two_keys.known\n"
        (folder / "two_keys.py").write_text(_TWO_KEYS, "utf-8")
    (folder / "config.yaml").write_text(config, "utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    words: list[str | Path] = [PROGRAM, "--config", folder / "config.yaml", "--host", "127.0.0.1"]
    words += ["--port", url.rpartition(":")[2], "--telemetry", "False"]
    environment = {
        "LITELLM_MASTER_KEY": MASTER_KEY,
        "OPENAI_API_KEY": PROVIDER_KEY,
        # Nothing is fetched: prices and the like come from the package.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOG": "ERROR",
        "NO_PROXY": "*",
    }
    started = f"{url}/health/liveliness"
    with Program(
        words, folder=folder / "run", answers=started, environment=environment, patience=60
    ):
        yield url
