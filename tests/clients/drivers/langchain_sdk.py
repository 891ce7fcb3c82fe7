"""Drives langchain-openai."""

from __future__ import annotations

import sys
from typing import Any

import openai
import pydantic
from driving import HURRY_SECONDS, QUESTION, drive
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

KEY = "sk-" + sys.argv[1]


class Weather(pydantic.BaseModel):
    """The weather of a place."""

    city: str
    degrees: float


@tool
def forecast(city: str, days: int) -> str:
    """Tell the weather."""
    return f"rain in {city} for {days}"


def start(url: str, recorder: Any) -> dict[str, Any]:
    """What every model is made with."""
    name = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
    http = openai.DefaultHttpxClient(transport=recorder.transport(sys.modules[name]))
    return {"base_url": f"{url}/v1", "api_key": KEY, "http_client": http}


def named(message: Any) -> Any:
    """A message without the identifier that LangChain draws anew for each run."""
    if (message.id or "").startswith(("lc_run-", "run-")):
        message.id = "drawn"
    return message


def invoked(*, bound: Any = (), **given: Any) -> Any:
    def run(common: Any, model: str) -> Any:
        chat = ChatOpenAI(model=model, **common, **given)
        yield named((chat.bind_tools(bound) if bound else chat).invoke(QUESTION))

    return run


def streamed(*, bound: Any = (), **given: Any) -> Any:
    def run(common: Any, model: str) -> Any:
        chat = ChatOpenAI(model=model, **common, **given)
        for chunk in (chat.bind_tools(bound) if bound else chat).stream(QUESTION):
            yield named(chunk)

    return run


def several(common: Any, model: str) -> Any:
    result = ChatOpenAI(model=model, n=2, **common).generate([[HumanMessage(QUESTION)]])
    yield [named(generation.message) for generation in result.generations[0]]
    yield result.llm_output


def structured(common: Any, model: str) -> Any:
    chat = ChatOpenAI(model=model, **common)
    yield chat.with_structured_output(Weather, method="json_schema").invoke(QUESTION)


def left(**given: Any) -> Any:
    def run(common: Any, model: str) -> Any:
        stream = ChatOpenAI(model=model, **common, **given).stream(QUESTION)
        yield named(next(stream))
        yield named(next(stream))
        stream.close()

    return run


def completed(**given: Any) -> Any:
    def run(common: Any, model: str) -> Any:
        yield OpenAI(model=model, **common, **given).invoke(QUESTION)

    return run


def completed_stream(common: Any, model: str) -> Any:
    yield from OpenAI(model=model, **common).stream(QUESTION)


def embedded(common: Any, model: str) -> Any:
    # Its length check would fetch a tokenizer.
    embeddings = OpenAIEmbeddings(model=model, check_embedding_ctx_length=False, **common)
    yield embeddings.embed_documents(["one", "two"])


RESPONSES = {"use_responses_api": True, "store": False}
ENDINGS = ("http_400", "http_401", "http_429", "http_500")

TABLE = {
    "chat.plain": invoked(),
    "chat.flaky": invoked(),
    "chat.stream": streamed(stream_usage=False),
    "chat.stream.usage": streamed(stream_usage=True),
    "chat.tools": invoked(bound=[forecast]),
    "chat.tools.stream": streamed(bound=[forecast]),
    "chat.n2": several,
    "chat.schema": structured,
    **{f"chat.{ending}": invoked() for ending in ENDINGS},
    "chat.http_500.stream": streamed(),
    "chat.fault": streamed(),
    "chat.cut": streamed(),
    "chat.reset": streamed(),
    "chat.slow": left(),
    "chat.hang": invoked(timeout=HURRY_SECONDS, max_retries=0),
    "completions.plain": completed(),
    "completions.stream": completed_stream,
    "completions.http_400": completed(),
    "responses.plain": invoked(**RESPONSES),
    "responses.stream": streamed(**RESPONSES),
    "responses.tools": invoked(bound=[forecast], **RESPONSES),
    "responses.stateful": invoked(use_responses_api=True),
    "responses.http_400": invoked(**RESPONSES),
    "responses.fault": streamed(**RESPONSES),
    "responses.cut": streamed(**RESPONSES),
    "responses.slow": left(**RESPONSES),
    "embeddings.plain": embedded,
    "embeddings.http_400": embedded,
}

if __name__ == "__main__":
    drive(start, TABLE)
