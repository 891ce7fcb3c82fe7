"""GPTCache as a proxy: the thin wrapper, since its own server starts only with network access.

Runs in the venv of requirements/gptcache.txt:
`python gptcache_app.py PORT faiss|pgvector STUB_URL FOLDER [DATABASE_URL]`.

It is `adapt`, GPTCache's own flow (one embedding for search and save), with what helps it: threads,
one SQLAlchemy engine for all collections, no report table. It knows no scopes, so each `user` of a
request gets a collection of its own.
"""

from __future__ import annotations

import json
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import requests
import sqlalchemy
import sqlalchemy.orm
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

# The import that GPTCache 0.1.44 makes at this place must find our cached engines.
_create_engine = sqlalchemy.create_engine
_engines: dict[str, Any] = {}


def _one_engine(url: str, **options: Any) -> Any:
    if url not in _engines:
        _engines[url] = _create_engine(url, pool_size=16, max_overflow=0, **options)
    return _engines[url]


sqlalchemy.create_engine = _one_engine  # type: ignore[assignment]

from gptcache import Cache, Config  # noqa: E402
from gptcache.adapter.adapter import adapt  # noqa: E402
from gptcache.manager import CacheBase, VectorBase, get_data_manager  # noqa: E402
from gptcache.processor.pre import get_prompt  # noqa: E402
from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation  # noqa: E402

PORT, KIND, STUB, FOLDER = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
DATABASE = sys.argv[5] if len(sys.argv) > 5 else ""
DIMENSIONS = 384
THRESHOLD = 0.92  # cosine
# Of unit vectors: FAISS gives the squared L2 distance, pgvector the distance. GPTCache compares
# 4 - distance with 4 * similarity_threshold.
_SQUARED = 2 - 2 * THRESHOLD
_ASKED = 1 - (_SQUARED if KIND == "faiss" else _SQUARED**0.5) / 4

_local = threading.local()
_making = threading.Lock()


def _post(path: str, body: Any) -> Any:
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
        _local.session.trust_env = False
    return _local.session.post(STUB + path, json=body, timeout=30).json()


def embed(text: str, **_: Any) -> Any:
    reply = _post("/v1/embeddings", {"model": "stub", "input": text})
    return np.array(reply["data"][0]["embedding"], dtype=np.float32)


@cache
def _collection(scope: str) -> Cache:
    name = "scope_" + "".join(letter if letter.isalnum() else "_" for letter in scope)
    if KIND == "faiss":
        scalar = CacheBase("sqlite", sql_url=f"sqlite:///{FOLDER}/{name}.db", table_name=name)
        path = f"{FOLDER}/{name}.index"
        vectors = VectorBase("faiss", dimension=DIMENSIONS, index_path=path, top_k=1)
        lock = threading.Lock()  # FAISS does not promise to be read while it is written
        vectors.search = _locked(lock, vectors.search)
        vectors.mul_add = _locked(lock, vectors.mul_add)
        vectors.flush = _locked(lock, vectors.flush)
    else:
        scalar = CacheBase("postgresql", sql_url=DATABASE, table_name=name)
        vectors = VectorBase(
            "pgvector", url=DATABASE, collection_name=name, dimension=DIMENSIONS, top_k=1
        )
    made = Cache()
    made.init(
        pre_embedding_func=get_prompt,
        embedding_func=embed,
        data_manager=get_data_manager(scalar, vectors, max_size=1_000_000),
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(similarity_threshold=_ASKED, disable_report=True),
    )
    return made


def _locked(lock: threading.Lock, call: Any) -> Any:
    def run(*values: Any, **named: Any) -> Any:
        with lock:
            return call(*values, **named)

    return run


def _cache_of(scope: str) -> Cache:
    with _making:  # SQLAlchemy's declarative registry is shared
        return _collection(scope)


def _answer(asked: dict[str, Any]) -> str:
    def ask_upstream(*_: Any, **__: Any) -> str:
        return json.dumps(_post("/v1/chat/completions", asked))

    def save(answer: str, update: Any, *_: Any, **__: Any) -> str:
        update(answer)
        return answer

    text = asked["messages"][-1]["content"]
    scope = asked.get("user", "")
    answer: str = adapt(
        ask_upstream, lambda found: found, save, prompt=text, cache_obj=_cache_of(scope)
    )
    return answer


async def complete(request: Request) -> Response:
    asked = json.loads(await request.body())
    return Response(await run_in_threadpool(_answer, asked), media_type="application/json")


async def alive(_: Request) -> Response:
    return Response("ok")


app = Starlette(
    routes=[
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/livez", alive),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", access_log=False)
