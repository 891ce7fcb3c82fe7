r"""Half of a surrogate pair, as in `"\ud800"`: the grammar of JSON has it, Unicode does not.

Answers that a model broke off in the middle of an emoji do hold one. Such JSON is no text that
every reader takes, so it is refused as `response`; as `body` any bytes are welcome.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cachesvc.errors import BadRequest

_LOOKED_AT = 1 << 20  # bytes; whoever sends more is told less
# Escape by escape, so that a backslash which is escaped itself begins none.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_MARK = rb"\uFfFd"  # as nobody else writes it


class _Answer(Struct):
    response: Raw | UnsetType = UNSET


_DECODER = msgspec.json.Decoder(_Answer)


def halved_pair(body: bytes) -> BadRequest | None:
    """What to say of JSON that cannot be read because of half a pair; None where that is not why.

    `body` is UTF-8.
    """
    if len(body) > _LOOKED_AT:
        return None
    mended = _ESCAPE.sub(lambda found: _MARK if found["half"] else found[0], body)
    if mended == body:
        return None
    try:
        answer = _DECODER.decode(mended)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not isinstance(answer.response, UnsetType) and _MARK in bytes(answer.response):
        return BadRequest(
            "response: holds half of a surrogate pair, which is no text; "
            "put it as body, with media_type application/json"
        )
    return BadRequest("body: holds half of a surrogate pair, which is no text")
