"""Drives the LiteLLM SDK, over its OpenAI and its Anthropic providers."""

from __future__ import annotations

import re
import sys
from typing import Any

import httpx
import litellm
import pydantic
from driving import HURRY_SECONDS, PARAMETERS, QUESTION, Recorder, drive, dump
from litellm.llms.custom_httpx.http_handler import HTTPHandler

FUNCTION = {"name": "forecast", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
MESSAGES = [{"role": "user", "content": QUESTION}]
KEY = "sk-" + sys.argv[1]

DRAWN = re.compile("(?:chatcmpl-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

litellm.telemetry = False
litellm.suppress_debug_info = True


class Weather(pydantic.BaseModel):
    city: str
    degrees: float


def start(url: str, recorder: Any) -> dict[str, Any]:
    """Where every call goes, and the recorded client of what does not go through the openai SDK."""
    http = httpx.Client(transport=recorder.transport(httpx), timeout=60)
    litellm.client_session = http
    litellm.in_memory_llm_clients_cache.flush_cache()
    return {"url": url, "own": HTTPHandler(client=http)}


def steady(value: Any) -> Any:
    """Without what LiteLLM draws anew: the time, and identifiers in place of the answer's."""
    told = dump(value)
    if "created" in told:
        told["created"] = "now"
    if DRAWN.fullmatch(told.get("id") or ""):
        told["id"] = "drawn"
    return told


class Shortened(Recorder):
    """LiteLLM stops reading at `message_delta`; whether more has come with it is chance."""

    def drain(self) -> list[dict[str, Any]]:
        told = super().drain()
        for exchange in told:
            exchange["body"] = exchange["body"].partition("event: message_stop")[0]
        return told


def asked(verb: str, provider: str, path: str = "/v1", *, own: bool = False, **given: Any) -> Any:
    """A case that calls `litellm.<verb>`; `own`: the provider does not use the openai SDK."""

    def run(where: Any, model: str) -> Any:
        there = {"api_base": where["url"] + path, "api_key": KEY}
        if own:
            there["client"] = where["own"]
        result = getattr(litellm, verb)(model=f"{provider}/{model}", **there, **given)
        if given.get("stream"):
            yield from map(steady, result)
        else:
            yield steady(result)

    return run


def chat(**given: Any) -> Any:
    return asked("completion", "openai", messages=MESSAGES, **given)


def message(**given: Any) -> Any:
    return asked("completion", "anthropic", "", own=True, messages=MESSAGES, max_tokens=64, **given)


def text(**given: Any) -> Any:
    return asked("text_completion", "text-completion-openai", prompt=QUESTION, **given)


def response(**given: Any) -> Any:
    return asked("responses", "openai", own=True, input=QUESTION, **given)


def left(where: Any, model: str) -> Any:
    there = {"api_base": where["url"] + "/v1", "api_key": KEY}
    stream = litellm.completion(model=f"openai/{model}", messages=MESSAGES, stream=True, **there)
    yield steady(next(stream))
    yield steady(next(stream))
    stream.completion_stream.close()


USAGE = {"include_usage": True}
ENDINGS = ("http_400", "http_401", "http_429", "http_500")

TABLE = {
    "chat.plain": chat(),
    "chat.stream": chat(stream=True),
    "chat.stream.usage": chat(stream=True, stream_options=USAGE),
    "chat.tools": chat(tools=TOOLS),
    "chat.tools.stream": chat(tools=TOOLS, stream=True),
    "chat.n2": chat(n=2),
    "chat.schema": chat(response_format=Weather),
    **{f"chat.{ending}": chat() for ending in ENDINGS},
    "chat.http_500.stream": chat(stream=True),
    "chat.fault": chat(stream=True),
    "chat.cut": chat(stream=True),
    "chat.reset": chat(stream=True),
    "chat.slow": left,
    "chat.hang": chat(timeout=HURRY_SECONDS, max_retries=0),
    "completions.plain": text(),
    "completions.stream": text(stream=True),
    "responses.plain": response(store=False),
    "responses.stream": response(store=False, stream=True),
    "responses.stateful": response(),
    "responses.http_400": response(store=False),
    "responses.cut": response(store=False, stream=True),
    "messages.plain": message(),
    "messages.stream": message(stream=True),
    "messages.tools": message(tools=TOOLS),
    "messages.http_400": message(),
    "messages.fault": message(stream=True),
    "messages.cut": message(stream=True),
    "messages.reset": message(stream=True),
    "embeddings.plain": asked("embedding", "openai", input=["one", "two"]),
    "embeddings.http_400": asked("embedding", "openai", input=["one"]),
}

# LiteLLM makes up the stream of a model it does not know from a plain answer.
STREAMS = {"litellm_provider": "openai", "mode": "responses", "supports_native_streaming": True}

if __name__ == "__main__":
    litellm.register_model({f"m-{case}": STREAMS for case in TABLE if case.startswith("responses")})
    drive(start, TABLE, Shortened())
