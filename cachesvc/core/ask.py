"""What a caller asks: a request, read by its protocol, before anything is decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its role, and where in the body each of its texts stands."""

    role: str
    texts: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of one protocol.

    `body` is the parsed JSON object. `comparable` is False when the request has anything that
    only equality can judge (images, tools, named messages, …): then it has no semantic tier.
    `temperature` is None where the caller gave none. `stateful` is True when the answer belongs to
    something that the provider keeps (a conversation, a stored response): it is nobody else's.
    """

    protocol: str
    body: dict[str, Any]
    model: str
    stream: bool
    temperature: float | None
    turns: tuple[Turn, ...]
    comparable: bool
    stateful: bool = False


def text_at(body: Any, path: Path) -> str:
    """The text that stands at `path`."""
    for step in path:
        body = body[step]
    return str(body)
