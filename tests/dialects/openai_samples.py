"""Requests and answers in the shapes in which OpenAI's APIs send them."""

from __future__ import annotations

from typing import Any

from cachesvc.core.admission import Reading
from cachesvc.dialects.openai_chat import OpenAIChat
from cachesvc.dialects.openai_completions import OpenAICompletions
from cachesvc.dialects.openai_embeddings import OpenAIEmbeddings
from cachesvc.dialects.openai_responses import OpenAIResponses
from tests.dialects.shapes import DONE, Sample, data, named, pretty


def _chunk(*choices: dict[str, Any], **fields: Any) -> bytes:
    head = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1754000000}
    more = {"model": "gpt-4o-2024-08-06", "system_fingerprint": "fp_1", "choices": choices}
    return data({**head, **more, **fields})


def delta(index: int = 0, finish: str | None = None, **said: Any) -> dict[str, Any]:
    return {"index": index, "delta": said, "logprobs": None, "finish_reason": finish}


_CHAT_USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 7,
    "total_tokens": 26,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
_CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "w", "arguments": ""}}

CHAT = Sample(
    OpenAIChat(),
    {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": [{"type": "text", "text": "The capital of France?"}]},
        ],
        "temperature": 0.2,
        "seed": 7,
        "stop": ["\n\n"],
        "response_format": {"type": "text"},
        "metadata": {"team": "a"},
    },
    pretty(
        {
            "id": "chatcmpl-9",
            "object": "chat.completion",
            "created": 1754000000,
            "model": "gpt-4o-2024-08-06",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": 'Paris, "usage": 7 — é',
                        "refusal": None,
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _CHAT_USAGE,
            "service_tier": "default",
        }
    ),
    Reading(("stop",), False, 19, 7),
    {
        "text, with usage last": (
            _chunk(delta(role="assistant", content=""), usage=None)
            + _chunk(delta(content="Paris [DONE]"), usage=None)
            + _chunk(delta(finish="stop"), usage=None)
            + _chunk(usage=_CHAT_USAGE)
            + DONE,
            Reading(("stop",), False, 19, 7),
        ),
        "two choices": (
            _chunk(delta(0, role="assistant", content="a"))
            + _chunk(delta(1, role="assistant", content="b"))
            + _chunk(delta(1, "stop"))
            + _chunk(delta(0, "length"))
            + DONE,
            Reading(("stop", "length")),
        ),
        "a tool call": (
            _chunk(delta(role="assistant", content=None, tool_calls=[_CALL]))
            + _chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"usage":1}'}}]))
            + _chunk(delta(finish="tool_calls"))
            + DONE,
            Reading(("tool_calls",)),
        ),
        "a content filter's first chunk": (
            _chunk(prompt_filter_results=[{"prompt_index": 0}])
            + _chunk(delta(content="a"))
            + _chunk(delta(finish="stop"))
            + DONE,
            Reading(("stop",)),
        ),
    },
)

_COMPLETION = {"id": "cmpl-1", "object": "text_completion", "created": 1754000000, "model": "m-i"}


def _text(text: str, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


COMPLETIONS = Sample(
    OpenAICompletions(),
    {"model": "m-i", "prompt": "Once upon", "max_tokens": 5, "top_p": 0.5, "stop": None, "n": 1},
    pretty(
        {
            **_COMPLETION,
            "choices": [_text(" a time", finish="length")],
            "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7},
        }
    ),
    Reading(("length",), False, 2, 5),
    {
        "text": (
            data({**_COMPLETION, "choices": [_text(" a")]})
            + data({**_COMPLETION, "choices": [_text(" time", finish="length")]})
            + data(
                {
                    **_COMPLETION,
                    "choices": [],
                    "usage": {"prompt_tokens": 2, "completion_tokens": 5},
                }
            )
            + DONE,
            Reading(("length",), False, 2, 5),
        ),
        "two choices": (
            data({**_COMPLETION, "choices": [_text(" a"), _text(" b", 1, "stop")]})
            + data({**_COMPLETION, "choices": [_text("", finish="stop")]})
            + DONE,
            Reading(("stop", "stop")),
        ),
    },
)

_RESPONSES_USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 16,
}


def response(status: str = "completed", **fields: Any) -> dict[str, Any]:
    head = {"id": "resp_1", "object": "response", "created_at": 1754000000, "status": status}
    more = {
        "error": None,
        "incomplete_details": None,
        "instructions": "Be terse.",
        "model": "gpt-5",
    }
    return {**head, **more, "output": [], "store": False, "usage": None, **fields}


def _output(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    return [{"id": "rs_1", "type": "reasoning", "summary": []}, {**message, "content": list(parts)}]


_SAID = {"type": "output_text", "text": "Paris.", "annotations": [], "logprobs": []}
_REFUSAL = {"type": "refusal", "refusal": "I will not."}
_FUNCTION_CALL = {"id": "fc_1", "type": "function_call", "name": "w", "arguments": "{}"}
_OPENING = named("response.created", sequence_number=0, response=response("in_progress")) + named(
    "response.in_progress", sequence_number=1, response=response("in_progress")
)


def _responses_stream(*events: bytes, **answer: Any) -> bytes:
    end = named("response.completed", sequence_number=9, response=response(**answer))
    return b"".join((_OPENING, *events, end))


RESPONSES = Sample(
    OpenAIResponses(),
    {
        "model": "gpt-5",
        "instructions": "Be terse.",
        "input": [
            {"role": "user", "content": "Hello"},
            {
                "type": "message",
                "id": "msg_0",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Hi!", "annotations": []}],
            },
            {"role": "user", "content": [{"type": "input_text", "text": "The capital of France?"}]},
        ],
        "store": False,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "max_output_tokens": 100,
    },
    pretty(response(output=_output(_SAID), usage=_RESPONSES_USAGE)),
    Reading(("completed",), False, 11, 5),
    {
        "text": (
            _responses_stream(
                named("response.output_item.added", output_index=1, item={"type": "message"}),
                named("response.output_text.delta", item_id="msg_1", delta="response.completed"),
                named("response.output_text.done", item_id="msg_1", text="Paris."),
                output=_output(_SAID),
                usage=_RESPONSES_USAGE,
            ),
            Reading(("completed",), False, 11, 5),
        ),
        "a function call": (
            _responses_stream(
                named("response.function_call_arguments.delta", item_id="fc_1", delta="{}"),
                output=[_FUNCTION_CALL],
            ),
            Reading(("completed",)),
        ),
        "a refusal": (
            _responses_stream(
                named("response.refusal.done", refusal="I will not."), output=_output(_REFUSAL)
            ),
            Reading(("completed",), refused=True),
        ),
    },
)

EMBEDDINGS = Sample(
    OpenAIEmbeddings(),
    {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 2, "user": "u1"},
    pretty(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.25, -1.5e-3]},
                {"object": "embedding", "index": 1, "embedding": "AACAPgAAAAA="},
            ],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }
    ),
    Reading(prompt_tokens=2),
)
