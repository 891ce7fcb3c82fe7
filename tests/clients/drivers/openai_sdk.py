"""Drives the openai SDK, 3.x and 2.x alike."""

from __future__ import annotations

import asyncio
import sys
from operator import attrgetter
from typing import Any

import openai
import pydantic
from driving import HURRY_SECONDS, PARAMETERS, QUESTION, drive

FUNCTION = {"name": "forecast", "parameters": PARAMETERS, "strict": True}
CHAT_TOOLS = [{"type": "function", "function": FUNCTION}]
TOOLS = [{"type": "function", **FUNCTION}]
MESSAGES = [{"role": "user", "content": QUESTION}]
KEY = "sk-" + sys.argv[1]


class Weather(pydantic.BaseModel):
    city: str
    degrees: float


def start(url: str, recorder: Any) -> openai.OpenAI:
    name = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
    http = openai.DefaultHttpxClient(transport=recorder.transport(sys.modules[name]))
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=http)


def called(verb: str, **given: Any) -> Any:
    """A case that calls `client.<verb>` with these arguments and takes all that comes."""

    def run(client: Any, model: str) -> Any:
        result = attrgetter(verb)(client)(model=model, **given)
        if given.get("stream"):
            yield from result
        else:
            yield result

    return run


def chat(**given: Any) -> Any:
    return called("chat.completions.create", **{"messages": MESSAGES, **given})


def completion(**given: Any) -> Any:
    return called("completions.create", prompt=QUESTION, **given)


def response(**given: Any) -> Any:
    return called("responses.create", **{"input": QUESTION, "store": False, **given})


def embedding(**given: Any) -> Any:
    return called("embeddings.create", **{"input": QUESTION, **given})


def raw(client: Any, model: str) -> Any:
    reply = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
    yield [reply.status_code, reply.headers["content-type"], reply.content, reply.parse()]


def raw_stream(client: Any, model: str) -> Any:
    create = client.chat.completions.with_streaming_response.create
    with create(model=model, messages=MESSAGES, stream=True) as reply:
        yield b"".join(reply.iter_bytes())


def helper(client: Any, model: str) -> Any:
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, response_format=Weather
    ) as events:
        yield from events
        yield events.get_final_completion()


def responses_helper(client: Any, model: str) -> Any:
    with client.responses.stream(model=model, input=QUESTION, store=False) as events:
        yield from events
        yield events.get_final_response()


def left(verb: str, **given: Any) -> Any:
    """Two events of a stream, then no more."""

    def run(client: Any, model: str) -> Any:
        with attrgetter(verb)(client)(model=model, stream=True, **given) as stream:
            taken = iter(stream)
            yield next(taken)
            yield next(taken)

    return run


def hurried(client: Any, model: str) -> Any:
    in_a_hurry = client.with_options(timeout=HURRY_SECONDS, max_retries=0)
    yield in_a_hurry.chat.completions.create(model=model, messages=MESSAGES)


def in_async(work: Any) -> Any:
    def run(client: Any, model: str) -> Any:
        async def all_of_it() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=client.base_url, api_key=KEY) as sdk:
                return await work(sdk, model)

        yield from asyncio.run(all_of_it())

    return run


async def async_stream(sdk: Any, model: str) -> list[Any]:
    stream = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    return [chunk async for chunk in stream]


async def async_cancelled(sdk: Any, model: str) -> list[Any]:
    stream = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    taken = aiter(stream)
    first = [await anext(taken), await anext(taken)]
    waiting = asyncio.ensure_future(anext(taken))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stream.close()
    return [*first, f"cancelled while {len(done)} were done"]


CALL = {"id": "call_1", "type": "function", "function": {"name": "forecast", "arguments": "{}"}}
AFTER_THE_TOOL = [
    *MESSAGES,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]
USAGE = {"include_usage": True}
ENDINGS = ("http_400", "http_401", "http_429", "http_500")

TABLE = {
    "chat.plain": chat(),
    "chat.plain.raw": raw,
    "chat.plain.async": in_async(
        lambda sdk, model: asyncio.gather(
            sdk.chat.completions.create(model=model, messages=MESSAGES)
        )
    ),
    "chat.gzip": chat(),
    "chat.flaky": chat(),
    "chat.stream": chat(stream=True),
    "chat.stream.usage": chat(stream=True, stream_options=USAGE),
    "chat.stream.raw": raw_stream,
    "chat.stream.async": in_async(async_stream),
    "chat.tools": chat(tools=CHAT_TOOLS),
    "chat.tools.stream": chat(tools=CHAT_TOOLS, stream=True),
    "chat.tools.answered": chat(tools=CHAT_TOOLS, messages=AFTER_THE_TOOL),
    "chat.n2": chat(n=2),
    "chat.n2.stream": chat(n=2, stream=True, stream_options=USAGE),
    "chat.schema": called("chat.completions.parse", messages=MESSAGES, response_format=Weather),
    "chat.schema.stream": helper,
    **{f"chat.{ending}": chat() for ending in ENDINGS},
    **{f"chat.{ending}.stream": chat(stream=True) for ending in ENDINGS},
    "chat.fault": chat(stream=True),
    "chat.cut": chat(stream=True),
    "chat.reset": chat(stream=True),
    "chat.slow": left("chat.completions.create", messages=MESSAGES),
    "chat.slow.async": in_async(async_cancelled),
    "chat.hang": hurried,
    "completions.plain": completion(),
    "completions.n2": completion(n=2),
    "completions.stream": completion(stream=True),
    "completions.stream.usage": completion(stream=True, stream_options=USAGE),
    "completions.http_400": completion(),
    "completions.http_500": completion(stream=True),
    "completions.fault": completion(stream=True),
    "completions.cut": completion(stream=True),
    "completions.slow": left("completions.create", prompt=QUESTION),
    "responses.plain": response(),
    "responses.stream": response(stream=True),
    "responses.stream.helper": responses_helper,
    "responses.tools": response(tools=TOOLS),
    "responses.tools.stream": response(tools=TOOLS, stream=True),
    "responses.schema": called("responses.parse", input=QUESTION, store=False, text_format=Weather),
    "responses.stateful": called("responses.create", input=QUESTION),
    "responses.stateful.stream": called("responses.create", input=QUESTION, stream=True),
    "responses.stateful.follows": response(previous_response_id="resp_1"),
    "responses.http_400": response(),
    "responses.http_429": response(stream=True),
    "responses.http_500": response(),
    "responses.fault": response(stream=True),
    "responses.cut": response(stream=True),
    "responses.reset": response(stream=True),
    "responses.slow": left("responses.create", input=QUESTION, store=False),
    "embeddings.plain": embedding(),
    "embeddings.plain.numbers": embedding(encoding_format="float"),
    "embeddings.plain.several": embedding(input=["one", "two", "one"]),
    "embeddings.plain.tokens": embedding(input=[[1, 2], [3]]),
    "embeddings.http_400": embedding(),
    "embeddings.http_500": embedding(),
    "any.models": lambda client, _: iter([client.models.list()]),
}

if __name__ == "__main__":
    drive(start, TABLE)
