"""What the fake upstream understands of a request, and the words it answers with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

ARGUMENTS = '{"city": "Zürich", "days": 3}'
SCHEMA_ANSWER = '{"city": "Tórshavn", "degrees": -3.5}'
COMMENT = b": still at it\n\n"


@dataclass(frozen=True)
class Asked:
    """A request body and what follows from its bytes alone, so that equal ones are answered alike.

    `token` is 16 hex digits of the body's SHA-256.
    """

    body: dict[str, Any]
    token: str

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def created(self) -> int:
        """Seconds since 1970, in 2023."""
        return 1_700_000_000 + int(self.token[:5], 16)

    @property
    def tool(self) -> str | None:
        """The tool to call: the first one, by any protocol's way to word it; None once it ran."""
        if '"tool_result"' in self._last or '"tool"' in self._last or "call_output" in self._last:
            return None
        for tool in self.body.get("tools") or ():
            return str((tool.get("function") or tool)["name"])
        return None

    @property
    def _last(self) -> str:
        turns = self.body.get("messages") or self.body.get("input") or [""]
        return json.dumps(turns[-1])

    @property
    def wants_schema(self) -> bool:
        """Whether a JSON schema was asked for, by any protocol's way to ask."""
        body = self.body
        asked = (
            body.get("response_format"),
            (body.get("text") or {}).get("format"),
            (body.get("output_config") or {}).get("format"),
            body.get("output_format"),
        )
        return any((form or {}).get("type") == "json_schema" for form in asked)

    def text(self, number: int = 0) -> str:
        """The answer of one choice: words that a careless relay would change."""
        if self.wants_schema:
            return SCHEMA_ANSWER
        return f"Answer {number} of {self.token}:  é 漢字 \u2028 \\n {{}} \U0001f9ca"


def read(body: bytes) -> Asked:
    """The request with this body, `{}` when there is none."""
    return Asked(json.loads(body or b"{}"), hashlib.sha256(body).hexdigest()[:16])


def words(text: str) -> list[str]:
    """Fragments of a text whose concatenation is the text."""
    return [piece for word in text.split(" ") for piece in (word, " ")][:-1]


def frame(value: Any, name: str | None = None) -> bytes:
    """One event; its JSON is spaced unevenly, as no serialiser of a cache would do again."""
    data = json.dumps(value, separators=(",  ", ":"), ensure_ascii=name is None).encode()
    # U+2028 ends a line for careless splitters of event streams, and must reach them escaped.
    data = data.replace("\u2028".encode(), b"\\u2028")
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: " + data + b"\n\n"
