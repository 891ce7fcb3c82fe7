"""The names of cases: `<protocol>.<scenario>[.<variant>]`, such as `chat.cut` or `chat.plain.raw`.

A driver asks for the model `m-<case>`, so the upstream knows from the request alone what to do, and
no two cases are ever compared by the semantic tier.
"""

from __future__ import annotations

MODEL_PREFIX = "m-"
STATUSES = {"http_400": 400, "http_401": 401, "http_429": 429, "http_500": 500}
LEFT = frozenset({"slow", "hang"})
"""The caller leaves before the answer is whole."""
BROKEN = frozenset({"cut", "reset"})
"""The upstream breaks off within a stream, by an end that comes too early or by a reset."""
NEVER_KEPT = frozenset({*STATUSES, *LEFT, *BROKEN, "fault", "stateful", "models"})


def scenario(case: str) -> str:
    """What the upstream does for this case."""
    return case.split(".")[1]


def is_kept(case: str) -> bool:
    """True where the second run must be answered from the cache."""
    return scenario(case) not in NEVER_KEPT


def case_of(model: str) -> str:
    """The case a request belongs to; `any.models` when it names no model of ours."""
    name = model.rpartition(MODEL_PREFIX)[2]
    return name if model.startswith(MODEL_PREFIX) and "." in name else "any.models"
