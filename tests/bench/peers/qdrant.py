"""As much of Qdrant's REST interface as LiteLLM's semantic cache uses: in memory, exact, filtered.

It stands for a server that no package index carries. It does less work than the real one, so what
is measured with it is the best that LiteLLM can do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_KEY = "litellm_cache_key"


class Qdrant:
    """Collections of points by LiteLLM's cache key, which is the filter of every search."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, str], _Points] = {}
        self._collections: set[str] = set()

    def answer(self, method: str, path: str, asked: dict[str, Any]) -> Any:
        _, _, collection, *rest = path.split("/")
        match (method, rest):
            case ("GET", ["exists"]):
                return {"result": {"exists": collection in self._collections}}
            case ("PUT", ["points"]):
                for point in asked["points"]:
                    key = collection, point["payload"][_KEY]
                    self._points.setdefault(key, _Points()).add(point)
                return {"result": {"status": "completed"}}
            case ("POST", ["points", "search"]):
                key = collection, asked["filter"]["must"][0]["match"]["value"]
                points = self._points.get(key)
                return {"result": [] if points is None else points.nearest(asked["vector"])}
            case _:
                self._collections.add(collection)
                return {"result": True, "status": "ok"}


class _Points:
    """The points of one key; vectors (capacity, d), doubled when full."""

    def __init__(self) -> None:
        self._payloads: list[Any] = []
        self._vectors = np.zeros((0, 0), dtype=np.float32)

    def add(self, point: dict[str, Any]) -> None:
        vector = np.array(point["vector"], dtype=np.float32)
        count = len(self._payloads)
        if count == len(self._vectors):
            grown = np.zeros((max(16, 2 * count), len(vector)), dtype=np.float32)
            if count:
                grown[:count] = self._vectors
            self._vectors = grown
        self._vectors[count] = vector / np.linalg.norm(vector)
        self._payloads.append(point["payload"])

    def nearest(self, asked: list[float]) -> list[Any]:
        vector = np.array(asked, dtype=np.float32)
        scores = self._vectors[: len(self._payloads)] @ (vector / np.linalg.norm(vector))
        best = int(np.argmax(scores))
        score = float(scores[best])
        return [{"id": best, "version": 0, "score": score, "payload": self._payloads[best]}]
