"""What the protocols read alike: requests strictly, answers leniently."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from cachesvc.core import canonical
from cachesvc.dialects import sse
from cachesvc.errors import Unreadable

if TYPE_CHECKING:
    from cachesvc.core.ask import Path

JSON, STREAM = "json", "stream"
DONE = b"[DONE]"
ERROR = "error"
_MAX_TOKENS = 2**32 - 1


def request_object(body: bytes) -> dict[str, Any]:
    """The request's JSON object. Raises Unreadable."""
    value = canonical.parse(body)
    if not isinstance(value, dict):
        raise Unreadable("the body is not an object")
    return value


def model_of(request: dict[str, Any]) -> str:
    """The model asked for. Raises Unreadable for what is no text."""
    model = request.get("model", "")
    if not isinstance(model, str):
        raise Unreadable("model is not a string")
    return model


def asks_stream(request: dict[str, Any]) -> bool:
    """Whether a stream is asked for: absent, null, false and 0 are no. Raises Unreadable."""
    value = request.get("stream")
    if value is True:
        return True
    if value is None or value is False or (type(value) is int and value == 0):
        return False
    raise Unreadable("stream is not a boolean")


def temperature_of(request: dict[str, Any]) -> float | None:
    """The temperature asked for, None where there is none that is a number."""
    value = request.get("temperature")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < 1e300 else None


def messages_of(request: dict[str, Any]) -> list[Any]:
    """The conversation of a protocol that calls it `messages`. Raises Unreadable for none."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Unreadable("messages is not a list with at least one message")
    return messages


def role_of(message: Any, at: Path) -> str:
    """The role of a message. Raises Unreadable for what has none."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str):
        raise Unreadable(f"{_named(at)} is not an object with a role")
    return role


def is_plain(message: dict[str, Any]) -> bool:
    """Apart from its content, the message has nothing that only equality can judge."""
    get = message.get
    if get("tool_calls") or get("function_call") or get("audio"):
        return False
    # An empty name is still a name.
    named = get("name") is not None or get("tool_call_id") is not None
    return message["role"] not in ("tool", "function") and not named


def texts_of(content: Any, at: Path, kinds: tuple[str, ...] = ("text",)) -> tuple[list[Path], bool]:
    """Where the texts of a message's content stand, and whether there is nothing else in it.

    Content is a text, or a list of blocks with a type each. `kinds` are the types of text blocks.
    Raises Unreadable for every other shape.
    """
    if isinstance(content, str):
        return [at], True
    if not isinstance(content, list):
        raise Unreadable(f"{_named(at)} is neither text nor a list")
    found: list[Path] = []
    plain = True
    for place, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise Unreadable(f"{_named(at)}[{place}] is not a content block")
        if block["type"] in kinds and isinstance(block.get("text"), str):
            found.append((*at, place, "text"))
        else:
            plain = False
    return found, plain


def tools_of(request: dict[str, Any], field: str = "tools") -> list[dict[str, Any]]:
    """The tools of a request. Raises Unreadable for what is no list of objects."""
    tools = request.get(field)
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unreadable(f"{field} is not a list of objects")
    return tools


def is_text_or_tokens(value: Any) -> bool:
    """A list of texts, of tokens, or of lists of tokens; not an empty one."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(one, str) for one in value) or _are_tokens(value):
        return True
    return all(isinstance(one, list) and one and _are_tokens(one) for one in value)


def _are_tokens(values: list[Any]) -> bool:
    return all(type(one) is int for one in values)


def kind_of(media_type: str) -> str:
    """`JSON`, `STREAM`, or nothing for what is neither."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return STREAM
    return JSON if kind == "application/json" or kind.endswith("+json") else ""


def answer_json(text: bytes) -> Any:
    """The JSON value, or None. More lenient than requests: a lone surrogate is an answer, too."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def typed_events(body: bytes) -> list[dict[str, Any]] | None:
    """The events of a stream whose data are objects with a type; None when it is not whole.

    Each has its type under "type", as `type_of` tells it. Neither pings before the end nor a
    `[DONE]` at it, which some gateways add to every protocol, are among them.
    """
    events = sse.split(body)
    if events and is_done(events[-1]):
        events.pop()
    if not events:
        return None
    found = []
    for place, event in enumerate(events):
        value, kind = answer_json(event.data), type_of(event)
        if event.name == "ping" and kind != ERROR and place < len(events) - 1:
            continue
        if not isinstance(value, dict):
            return None
        found.append({**value, "type": kind})
    return found


def type_of(event: sse.Event) -> str:
    """What an event says it is, by its data's type and its name; nothing where they disagree."""
    if is_error(event):
        return ERROR
    value = answer_json(event.data)
    said = value.get("type") if isinstance(value, dict) else None
    if not isinstance(said, str):
        return event.name
    return said if event.name in ("message", said) else ""


def is_done(event: sse.Event) -> bool:
    return event.data.strip() == DONE


def is_error(event: sse.Event) -> bool:
    """An event by which a server, or a gateway before it, says that it failed."""
    return event.name == ERROR or is_failure(answer_json(event.data))


def is_failure(value: Any) -> bool:
    """An error where an answer, or a part of one, should be: gateways send them as a 200, too."""
    return isinstance(value, dict) and (
        bool(value.get("error")) or ERROR in (value.get("type"), value.get("object"))
    )


def tokens(*values: Any) -> int:
    """The sum of the counts among the values; 0 where there is none."""
    counts = [value for value in values if type(value) is int and 0 <= value <= _MAX_TOKENS]
    return min(sum(counts), _MAX_TOKENS)


def openai_error(status: int, code: str, message: str) -> bytes:
    """An error body as OpenAI's API words it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": error}).encode("utf-8")


def _named(path: Path) -> str:
    named = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return named.removeprefix(".")


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
