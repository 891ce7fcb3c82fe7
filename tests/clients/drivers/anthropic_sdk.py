"""Drives the anthropic SDK."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anthropic
import pydantic
from driving import HURRY_SECONDS, PARAMETERS, QUESTION, drive

ASKED = {"max_tokens": 64, "messages": [{"role": "user", "content": QUESTION}]}
TOOLS = [{"name": "forecast", "description": "tells", "input_schema": PARAMETERS}]
KEY = "sk-" + sys.argv[1]


class Weather(pydantic.BaseModel):
    city: str
    degrees: float


def start(url: str, recorder: Any) -> anthropic.Anthropic:
    name = anthropic.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
    http = anthropic.DefaultHttpxClient(transport=recorder.transport(sys.modules[name]))
    return anthropic.Anthropic(base_url=url, api_key=KEY, http_client=http)


def created(**given: Any) -> Any:
    def run(client: Any, model: str) -> Any:
        result = client.messages.create(model=model, **{**ASKED, **given})
        if given.get("stream"):
            yield from result
        else:
            yield result

    return run


def helper(**given: Any) -> Any:
    """The SDK's own assembly of a stream."""

    def run(client: Any, model: str) -> Any:
        with client.messages.stream(model=model, **{**ASKED, **given}) as events:
            yield from events
            yield events.get_final_message()

    return run


def raw(client: Any, model: str) -> Any:
    reply = client.messages.with_raw_response.create(model=model, **ASKED)
    yield [reply.status_code, reply.headers["content-type"], reply.read(), reply.parse()]


def raw_stream(client: Any, model: str) -> Any:
    create = client.messages.with_streaming_response.create
    with create(model=model, stream=True, **ASKED) as reply:
        yield b"".join(reply.iter_bytes())


def parsed(client: Any, model: str) -> Any:
    message = client.messages.parse(model=model, output_format=Weather, **ASKED)
    yield [message, message.parsed_output]


def left(client: Any, model: str) -> Any:
    with client.messages.create(model=model, stream=True, **ASKED) as stream:
        taken = iter(stream)
        yield next(taken)
        yield next(taken)


def hurried(client: Any, model: str) -> Any:
    in_a_hurry = client.with_options(timeout=HURRY_SECONDS, max_retries=0)
    yield in_a_hurry.messages.create(model=model, **ASKED)


def in_async(client: Any, model: str) -> Any:
    async def all_of_it() -> list[Any]:
        async with anthropic.AsyncAnthropic(base_url=client.base_url, api_key=KEY) as sdk:
            stream = await sdk.messages.create(model=model, stream=True, **ASKED)
            return [event async for event in stream]

    yield from asyncio.run(all_of_it())


CALL = {"type": "tool_use", "id": "toolu_1", "name": "forecast", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}
AFTER_THE_TOOL = [
    *ASKED["messages"],
    {"role": "assistant", "content": [CALL]},
    {"role": "user", "content": [RESULT]},
]
ENDINGS = ("http_400", "http_401", "http_429", "http_500")

TABLE = {
    "messages.plain": created(),
    "messages.plain.raw": raw,
    "messages.plain.system": created(system="Be brief."),
    "messages.gzip": created(),
    "messages.flaky": created(),
    "messages.stream": created(stream=True),
    "messages.stream.raw": raw_stream,
    "messages.stream.helper": helper(),
    "messages.stream.async": in_async,
    "messages.tools": created(tools=TOOLS),
    "messages.tools.stream": created(tools=TOOLS, stream=True),
    "messages.tools.helper": helper(tools=TOOLS),
    "messages.tools.answered": created(tools=TOOLS, messages=AFTER_THE_TOOL),
    "messages.schema": parsed,
    **{f"messages.{ending}": created() for ending in ENDINGS},
    **{f"messages.{ending}.stream": created(stream=True) for ending in ENDINGS},
    "messages.fault": created(stream=True),
    "messages.fault.helper": helper(),
    "messages.cut": created(stream=True),
    "messages.reset": created(stream=True),
    "messages.slow": left,
    "messages.hang": hurried,
}

if __name__ == "__main__":
    drive(start, TABLE)
