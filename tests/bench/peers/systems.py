"""The systems that are compared: how each is started, asked and told apart by scope."""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cachesvc import wire
from cachesvc.store.embedded import EmbeddedPostgres
from tests.bench.peers import prompts
from tests.bench.peers.asking import Ask, Served, post
from tests.deploy.processes import ROOT, Program, free_port
from tests.end_to_end.stack import Up

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
CLIENTS = ROOT / ".clients"
MSGPACK = "application/msgpack"
MASTER_KEY = "sk-master-of-the-bench"
_CUSTOM_AUTH = """
from litellm.proxy._types import UserAPIKeyAuth


async def known(request, api_key):
    return UserAPIKeyAuth(api_key=api_key)
"""


class System(ABC):
    """One row of the table. `exact` tells that it knows no paraphrases."""

    name: str
    told_apart: str
    exact = False
    calls_upstream = True
    url: str
    pids: list[int]

    @abstractmethod
    def start(self, folder: Path, stub: str) -> contextlib.AbstractContextManager[None]:
        """Run it; sets `url` and `pids`, the processes whose trees are its memory."""

    def store(self, topic: str, scope: str) -> Ask:
        """The first call for a prompt, which stores its answer."""
        return self.ask(topic, prompts.prompt(topic), scope)

    def ask(self, topic: str, text: str, scope: str) -> Ask:
        """A call, by default a chat completion that is answered or forwarded."""
        body = {"model": "m", "user": scope, "messages": [{"role": "user", "content": text}]}
        stored = prompts.marker(prompts.prompt(topic), scope).encode()
        fresh = prompts.marker(text, scope).encode()

        def judge(status: int, answer: bytes) -> Served:
            if status != 200:
                return Served.FAILED
            if stored in answer:
                return Served.STORED
            return Served.FRESH if fresh in answer else Served.WRONG

        # LiteLLM does not pass `user` on, but a header where it is told to.
        headers = [f"Authorization: Bearer sk-{scope}", f"X-Scope: {scope}"]
        headers.append("Content-Type: application/json")
        request = post(self.url, "/v1/chat/completions", msgspec.json.encode(body), *headers)
        return Ask(request, judge)


class Cachesvc(System):
    """`cachesvc up` with the stub as embedder and upstream: proxy, service, Postgres, watcher."""

    name = "cachesvc, proxy"
    told_apart = "credential"

    @contextlib.contextmanager
    def start(self, folder: Path, stub: str) -> Iterator[None]:
        environment = {
            "CACHESVC_EMBED_PROVIDER": "openai",
            "CACHESVC_EMBED_BASE_URL": f"{stub}/v1",
            "CACHESVC_EMBED_MODEL": "stub",
            "CACHESVC_EMBED_API_KEY": "sk-stub",
        }
        with Up(folder / "data", "--upstream", stub, environment=environment) as up:
            self.url, self.pids = self._url(up), [up.process.pid]
            yield

    def _url(self, up: Up) -> str:
        return up.proxy


class CachesvcExact(Cachesvc):
    """The same, asked the same words again."""

    name = "cachesvc, proxy, exact"
    exact = True


class CachesvcService(Cachesvc):
    """The same stack, its service asked directly, with vectors, as a gateway does."""

    name = "cachesvc, service"
    told_apart = "scope"
    calls_upstream = False

    def _url(self, up: Up) -> str:
        return up.service

    def store(self, topic: str, scope: str) -> Ask:
        text = prompts.prompt(topic)
        put = wire.PutRequest(
            policy_id="default",
            body=prompts.marker(text, scope).encode() + b" " * 300,
            media_type="application/json",
            embedding=prompts.vector(text).tobytes(),
            prompt_text=text,
            scope=scope,
            space="stub",
        )
        return self._call("/cache/put", msgspec.msgpack.encode(put), b"stored")

    def ask(self, topic: str, text: str, scope: str) -> Ask:
        asked = wire.LookupRequest(
            policy_id="default",
            embedding=prompts.vector(text).tobytes(),
            prompt_text=text,
            scope=scope,
            space="stub",
        )
        stored = prompts.marker(prompts.prompt(topic), scope).encode()
        return self._call("/cache/lookup", msgspec.msgpack.encode(asked), stored)

    def _call(self, path: str, body: bytes, expected: bytes) -> Ask:
        def judge(status: int, answer: bytes) -> Served:
            if status != 200:
                return Served.FAILED
            if expected in answer:
                return Served.STORED
            return Served.WRONG if b"answer to [[" in answer else Served.FRESH

        headers = f"Content-Type: {MSGPACK}", f"Accept: {MSGPACK}"
        return Ask(post(self.url, path, body, *headers), judge)


class GptCacheFaiss(System):
    """GPTCache behind tests/bench/peers/gptcache_app.py."""

    name = "GPTCache, SQLite + FAISS (thin wrapper)"
    told_apart = "a collection each"
    kind = "faiss"

    @contextlib.contextmanager
    def start(self, folder: Path, stub: str) -> Iterator[None]:
        with self._run(folder, stub) as program:
            self.pids = [program.process.pid]
            yield

    def _run(self, folder: Path, stub: str, *database: str) -> Program:
        files = folder / "files"
        files.mkdir(parents=True)
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        words: list[str | Path] = [
            CLIENTS / "gptcache" / "bin" / "python",
            HERE / "gptcache_app.py",
            port,
        ]
        words += [self.kind, stub, files, *database]
        environment = {"NO_PROXY": "*"}
        return Program(
            words, folder=folder, answers=f"{self.url}/livez", environment=environment, patience=60
        )


class GptCachePgvector(GptCacheFaiss):
    """The same on the Postgres that cachesvc embeds, with its settings."""

    name = "GPTCache, pgvector (thin wrapper)"
    kind = "pgvector"

    @contextlib.contextmanager
    def start(self, folder: Path, stub: str) -> Iterator[None]:
        server = EmbeddedPostgres(folder / "data")
        server.start()
        try:
            url = server.url.replace("postgresql://", "postgresql+psycopg2://")
            assert server.pid is not None
            with self._run(folder, stub, url) as program:
                self.pids = [program.process.pid, server.pid]
                yield
        finally:
            server.stop()


class LiteLlm(System):
    """The LiteLLM proxy with one worker, its semantic cache on an emulated Qdrant."""

    name = "LiteLLM proxy, qdrant-semantic (store emulated)"
    told_apart = "API key"
    cache: dict[str, object]

    @contextlib.contextmanager
    def start(self, folder: Path, stub: str) -> Iterator[None]:
        folder.mkdir(exist_ok=True)
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        (folder / "config.yaml").write_text(json.dumps(self._config(stub)), "utf-8")
        (folder / "every_key.py").write_text(_CUSTOM_AUTH, "utf-8")
        words: list[str | Path] = [CLIENTS / "litellm" / "bin" / "litellm"]
        words += ["--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", port]
        words += ["--telemetry", "False", "--num_workers", "1"]
        environment = {
            "LITELLM_MASTER_KEY": MASTER_KEY,
            "OPENAI_API_KEY": "sk-stub",
            "OPENAI_API_BASE": f"{stub}/v1",
            # Nothing is fetched: prices and the like come from the package.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
            "LITELLM_LOG": "ERROR",
            "NO_PROXY": "*",
        }
        with Program(
            words,
            folder=folder / "run",
            answers=f"{self.url}/health/liveliness",
            environment=environment,
            patience=90,
        ) as program:
            self.pids = [program.process.pid]
            yield

    def _config(self, stub: str) -> dict[str, object]:
        model = {"model": "openai/m", "api_base": f"{stub}/v1", "api_key": "sk-stub"}
        embedder = {"model": "openai/stub", "api_base": f"{stub}/v1", "api_key": "sk-stub"}
        settings = {"cache": True, "cache_params": self._cache(stub), "telemetry": False}
        settings["model_group_settings"] = {"forward_client_headers_to_llm_api": ["m"]}
        return {
            "model_list": [
                {"model_name": "m", "litellm_params": model},
                {"model_name": "stub", "litellm_params": embedder},
            ],
            "litellm_settings": settings,
            "general_settings": {
                "master_key": "os.environ/LITELLM_MASTER_KEY",
                "custom_auth": "every_key.known",
            },
        }

    def _cache(self, stub: str) -> dict[str, object]:
        return {
            "type": "qdrant-semantic",
            "qdrant_api_base": stub,
            "qdrant_collection_name": f"c{self.url.rpartition(':')[2]}",
            "qdrant_semantic_cache_embedding_model": "stub",
            "qdrant_semantic_cache_vector_size": prompts.DIMENSIONS,
            "similarity_threshold": prompts.THRESHOLD,
        }


class LiteLlmExact(LiteLlm):
    """Its cache in memory, by the same words."""

    name = "LiteLLM proxy, exact, in memory"
    told_apart = "the field user"
    exact = True

    def _cache(self, stub: str) -> dict[str, object]:
        return {"type": "local"}


def systems() -> list[System]:
    """All of them, in the order of the table."""
    return [
        CachesvcService(),
        Cachesvc(),
        GptCacheFaiss(),
        GptCachePgvector(),
        LiteLlm(),
        CachesvcExact(),
        LiteLlmExact(),
    ]


def missing() -> list[str]:
    """The venvs that are not there."""
    wanted = ("gptcache/bin/python", "litellm/bin/litellm")
    return [name for name in wanted if not shutil.which(str(CLIENTS / name))]
