"""What the drivers of the Python SDKs share: they run all cases on demand and tell what they saw.

A driver reads base URLs from its standard input, one per line, and answers each with one line of
JSON, `{case: {objects, exchanges, error}}`. It runs in its SDK's own environment, without ours.
"""

from __future__ import annotations

import gzip
import json
import sys
from typing import Any

QUESTION = "Where does the fake live?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
HURRY_SECONDS = 1.0


class Recorder:
    """Writes down what comes over the wire below an SDK, decoded, as it is read."""

    def __init__(self) -> None:
        self.exchanges: list[dict[str, Any]] = []

    def transport(self, library: Any) -> Any:
        """A transport of `library`, httpx or httpx2, that reads as ever and writes down."""
        recorder = self

        class Stream(library.SyncByteStream):
            def __init__(self, inner: Any, exchange: dict[str, Any]) -> None:
                self.inner, self.exchange = inner, exchange

            def __iter__(self) -> Any:
                for piece in self.inner:
                    self.exchange["raw"] += piece
                    yield piece

            def close(self) -> None:
                self.inner.close()

        class Transport(library.HTTPTransport):
            def handle_request(self, request: Any) -> Any:
                response = super().handle_request(request)
                exchange = {"status": response.status_code, "raw": b"", "headers": response.headers}
                recorder.exchanges.append(exchange)
                response.stream = Stream(response.stream, exchange)
                return response

        return Transport()

    def drain(self) -> list[dict[str, Any]]:
        """What came since the last call."""
        told, self.exchanges = [_told(exchange) for exchange in self.exchanges], []
        return told


def _told(exchange: dict[str, Any]) -> dict[str, Any]:
    raw, headers = exchange["raw"], exchange["headers"]
    if headers.get("content-encoding") == "gzip":
        raw = gzip.decompress(raw)
    return {
        "status": exchange["status"],
        "media_type": headers.get("content-type"),
        "body": raw.decode("utf-8", "backslashreplace"),
        "cache": headers.get("x-ai-cache-status"),
    }


def dump(value: Any) -> Any:
    """JSON of an SDK's object."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", warnings=False)
    if isinstance(value, (list, tuple)):
        return [dump(one) for one in value]
    if isinstance(value, dict):
        return {name: dump(one) for name, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value


def run_case(steps: Any, recorder: Recorder) -> dict[str, Any]:
    """The objects a generator yields, and how it failed if it did: any way is worth comparing."""
    objects: list[Any] = []
    error = None
    try:
        objects.extend(dump(value) for value in steps)
    except Exception as exc:
        error = {
            "kind": type(exc).__name__,
            "kinds": [kind.__name__ for kind in type(exc).__mro__],
            "status": getattr(exc, "status_code", None),
            "message": str(exc),
        }
    return {"objects": objects, "exchanges": recorder.drain(), "error": error}


def drive(start: Any, table: dict[str, Any], recorder: Recorder | None = None) -> None:
    """Answer each URL with a report; `start(url, recorder)` makes the client each case is given."""
    recorder = recorder or Recorder()
    for line in sys.stdin:
        client = start(line.strip(), recorder)
        report = {case: run_case(run(client, f"m-{case}"), recorder) for case, run in table.items()}
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()
