"""Chat completions and completions, as OpenAI answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.clients.answers.asked import ARGUMENTS, COMMENT, frame, words

if TYPE_CHECKING:
    from tests.clients.answers.asked import Asked

USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
}
DONE = b"data: [DONE]\n\n"


def plain(asked: Asked) -> dict[str, Any]:
    """A chat completion with as many choices as were asked for."""
    return {
        **_shape(asked, "chat.completion"),
        "choices": [_choice(asked, number) for number in range(asked.body.get("n") or 1)],
        "usage": USAGE,
    }


def frames(asked: Asked) -> list[bytes]:
    """The same as chunks: the choices take turns, usage only when it was asked for."""
    shape = _shape(asked, "chat.completion.chunk")
    wants_usage = (asked.body.get("stream_options") or {}).get("include_usage")
    if wants_usage:
        shape["usage"] = None
    made = [
        frame({**shape, "choices": [{"index": number, "delta": delta, "finish_reason": finish}]})
        for step in zip(*_deltas(asked), strict=True)
        for number, (delta, finish) in enumerate(step)
    ]
    if wants_usage:
        made.append(frame({**shape, "choices": [], "usage": USAGE}))
    return [made[0], COMMENT, *made[1:], DONE]


def plain_text(asked: Asked) -> dict[str, Any]:
    """A completion."""
    numbers = range(asked.body.get("n") or 1)
    choices = [_text_choice(number, asked.text(number), "stop") for number in numbers]
    return {**_shape(asked, "text_completion"), "choices": choices, "usage": USAGE}


def frames_text(asked: Asked) -> list[bytes]:
    """The same as chunks."""
    shape = _shape(asked, "text_completion")
    made = []
    for number in range(asked.body.get("n") or 1):
        for word in words(asked.text(number)):
            made.append(frame({**shape, "choices": [_text_choice(number, word, None)]}))
        made.append(frame({**shape, "choices": [_text_choice(number, "", "stop")]}))
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        made.append(frame({**shape, "choices": [], "usage": USAGE}))
    return [*made, DONE]


def error(status: int) -> dict[str, Any]:
    """An error body."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = f"The fake refuses with {status}: é"
    return {"error": {"message": message, "type": kind, "param": None, "code": f"code_{status}"}}


def fault() -> bytes:
    """The event that ends a stream which failed."""
    return frame(error(500))


def _shape(asked: Asked, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{asked.token}",
        "object": kind,
        "created": asked.created,
        "model": asked.model,
        "system_fingerprint": "fp_fake",
    }


def _call(asked: Asked, number: int) -> dict[str, Any]:
    function = {"name": asked.tool, "arguments": ARGUMENTS}
    return {"id": f"call_{asked.token}_{number}", "type": "function", "function": function}


def _choice(asked: Asked, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": asked.text(number), "refusal": None}
    if asked.tool:
        message |= {"content": None, "tool_calls": [_call(asked, number)]}
    finish = "tool_calls" if asked.tool else "stop"
    return {"index": number, "message": message, "logprobs": None, "finish_reason": finish}


def _deltas(asked: Asked) -> list[list[tuple[dict[str, Any], str | None]]]:
    """By choice, each chunk's delta and finish reason; equally many for each."""
    return [_deltas_of(asked, number) for number in range(asked.body.get("n") or 1)]


def _deltas_of(asked: Asked, number: int) -> list[tuple[dict[str, Any], str | None]]:
    if not asked.tool:
        texts = [{"content": word} for word in words(asked.text(number))]
        opening = {"role": "assistant", "content": "", "refusal": None}
        return [(opening, None), *((text, None) for text in texts), ({}, "stop")]
    call = _call(asked, number)
    begun = {"index": 0, **call, "function": {"name": asked.tool, "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": part}} for part in words(ARGUMENTS)]
    start: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [begun]}
    rest: list[tuple[dict[str, Any], str | None]] = [({"tool_calls": [p]}, None) for p in pieces]
    return [(start, None), *rest, ({}, "tool_calls")]


def _text_choice(number: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": None, "finish_reason": finish}
