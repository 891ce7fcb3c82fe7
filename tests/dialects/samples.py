"""Requests and answers of every protocol, in the shapes in which their APIs send them."""

from __future__ import annotations

import json
from typing import Any

from cachesvc.core.admission import Reading
from cachesvc.dialects.anthropic_messages import AnthropicMessages
from tests.dialects.openai_samples import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from tests.dialects.shapes import Sample, named


def message(stop_reason: str | None = "end_turn", **fields: Any) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5"}
    more = {"content": [{"type": "text", "text": "Paris."}], "stop_reason": stop_reason}
    return {**head, **more, "stop_sequence": None, **fields}


_INPUT_USAGE = {
    "input_tokens": 9,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 1000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100},
    "output_tokens": 1,
    "service_tier": "standard",
}


def messages_stream(*events: bytes, stop_reason: str = "end_turn", output_tokens: int = 6) -> bytes:
    start = message(None, content=[], usage=_INPUT_USAGE)
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return b"".join(
        (
            named("message_start", message=start),
            *events,
            named("message_delta", delta=delta, usage={"output_tokens": output_tokens}),
            named("message_stop"),
        )
    )


def _block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    return b"".join(
        (
            named("content_block_start", index=index, content_block=block),
            *(named("content_block_delta", index=index, delta=one) for one in deltas),
            named("content_block_stop", index=index),
        )
    )


ANTHROPIC = Sample(
    AnthropicMessages(),
    {
        "model": "claude-sonnet-4-5",
        "max_tokens": 256,
        "system": [
            {"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}
        ],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi!"}]},
            {"role": "user", "content": [{"type": "text", "text": "The capital of France?"}]},
        ],
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u1"},
    },
    json.dumps(message(usage={**_INPUT_USAGE, "output_tokens": 6})).encode(),
    Reading(("end_turn",), False, 1109, 6),
    {
        "text, with a ping": (
            messages_stream(
                named("ping"),
                _block(
                    0,
                    {"type": "text", "text": ""},
                    {"type": "text_delta", "text": "Paris. event: message_stop"},
                ),
            ),
            Reading(("end_turn",), False, 1109, 6),
        ),
        "a tool call": (
            messages_stream(
                _block(
                    0,
                    {"type": "tool_use", "id": "toolu_1", "name": "w", "input": {}},
                    {"type": "input_json_delta", "partial_json": '{"usage": {"a": 5}}'},
                ),
                stop_reason="tool_use",
            ),
            Reading(("tool_use",), False, 1109, 6),
        ),
        "thinking": (
            messages_stream(
                _block(
                    0,
                    {"type": "thinking", "thinking": "", "signature": ""},
                    {"type": "thinking_delta", "thinking": "Hm."},
                    {"type": "signature_delta", "signature": "Eq=="},
                ),
                stop_reason="max_tokens",
            ),
            Reading(("max_tokens",), False, 1109, 6),
        ),
    },
)

SAMPLES = (CHAT, COMPLETIONS, RESPONSES, ANTHROPIC, EMBEDDINGS)
BY_NAME = {sample.dialect.name: sample for sample in SAMPLES}
STREAMS = {
    f"{sample.dialect.name}: {shows}": (sample.dialect, body, reading)
    for sample in SAMPLES
    for shows, (body, reading) in sample.streams.items()
}
