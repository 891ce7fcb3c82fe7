"""Bodies in and out: JSON and MessagePack, chosen by `Content-Type` and `Accept`.

`response` is opaque JSON text. In a JSON body it stands as it is; in MessagePack it is a bin that
holds the text, so that what was put in one format is read in the other byte for byte. Inside the
service it is always the JSON text, as `msgspec.Raw`.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cachesvc.core.policy import Policy, read_policy
from cachesvc.errors import BadRequest, Invalid, TooLarge, UnsupportedMedia
from cachesvc.service.lengths import LARGE, check_lengths
from cachesvc.service.surrogates import halved_pair
from cachesvc.wire import FeedbackRequest, LookupReply, LookupRequest, PutRequest
from cachesvc.wire_admin import EntryReply, PurgeRequest

_T = TypeVar("_T")
_MAX_POLICY_BYTES = 256 * 1024
_NIL = b"\xc0"
_JSON_SPACE = b" \t\n\r"


class Format(Enum):
    """A body's format; the value is its media type."""

    JSON = b"application/json"
    MESSAGEPACK = b"application/msgpack"


_BY_MEDIA_TYPE = {format.value: format for format in Format}
_ANY = (b"*/*", b"application/*")


@lru_cache(maxsize=256)
def body_format(content_type: bytes | None) -> Format:
    """What a request body is written in; parameters are allowed. Raises UnsupportedMedia."""
    found = _BY_MEDIA_TYPE.get(_media_type(content_type or b""))
    if found is None:
        raise UnsupportedMedia("Content-Type: must be application/json or application/msgpack")
    return found


@lru_cache(maxsize=256)
def reply_format(accept: bytes | None, content_type: bytes | None) -> Format:
    """What a reply is written in: what `accept` prefers, else the request's own format.

    JSON for whoever accepts neither: a reply in the wrong format says more than none.
    """
    own = _BY_MEDIA_TYPE.get(_media_type(content_type or b""), Format.JSON)
    if accept is None:
        return own
    best, best_quality = Format.JSON, 0.0
    for item in accept.split(b","):
        media_type = _media_type(item)
        found = own if media_type in _ANY else _BY_MEDIA_TYPE.get(media_type)
        quality = _quality(item)
        if found is not None and quality > best_quality:
            best, best_quality = found, quality
    return best


def _media_type(value: bytes) -> bytes:
    return value.partition(b";")[0].strip().lower()


def _quality(item: bytes) -> float:
    for parameter in item.split(b";")[1:]:
        name, _, value = parameter.partition(b"=")
        if name.strip().lower() == b"q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


class Reader(Generic[_T]):
    """Reads bodies of one type in both formats."""

    def __init__(self, kind: type[_T]) -> None:
        self._json = msgspec.json.Decoder(kind)
        self._messagepack = msgspec.msgpack.Decoder(kind)

    def read(self, body: bytes, format: Format) -> _T:
        """Raises BadRequest, naming the field; Invalid for a number past float64."""
        try:
            if len(body) > LARGE:
                check_lengths(body, messagepack=format is Format.MESSAGEPACK)
            if format is Format.MESSAGEPACK:
                return self._messagepack.decode(body)
            # Raw and unknown fields would let invalid UTF-8 through.
            if not body.isascii():
                body.decode("utf-8")
            return self._json.decode(body)
        except UnicodeDecodeError as exc:
            raise BadRequest("body: holds text that is not UTF-8") from exc
        except RecursionError as exc:
            raise BadRequest("body: nests too deeply") from exc
        except msgspec.ValidationError as exc:
            raise _refusal(str(exc)) from exc
        except msgspec.MsgspecError as exc:
            halved = None if format is Format.MESSAGEPACK else halved_pair(body)
            raise halved or _refusal(str(exc)) from exc


def _refusal(message: str) -> BadRequest | Invalid:
    """msgspec's message as ours: the field first, no quotes."""
    what, _, where = message.replace("`", "").partition(" - at ")
    _, missing, field = what.partition("missing required field ")
    if missing:
        return BadRequest(f"{field}: is required")
    at = where.removeprefix("$").removeprefix(".") or "body"
    if "out of range" in what:  # 1e400: a number as the grammar has it, but none that we can keep
        return Invalid(f"{at}: must be finite")
    return BadRequest(f"{at}: {what[:1].lower()}{what[1:]}")


_LOOKUP = Reader(LookupRequest)
_PUT = Reader(PutRequest)
_PURGE = Reader(PurgeRequest)
_FEEDBACK = Reader(FeedbackRequest)
_FIELDS = Reader(dict[str, Raw])


def read_lookup(body: bytes, format: Format) -> LookupRequest:
    """Raises BadRequest or Invalid."""
    return _LOOKUP.read(body, format)


def read_put(body: bytes, format: Format) -> PutRequest:
    """`response` is its JSON text, whatever the format. Raises BadRequest or Invalid."""
    request = _PUT.read(body, format)
    if not isinstance(request.response, UnsetType):
        request.response = _response(bytes(request.response), format)
    return request


def read_purge(body: bytes, format: Format) -> PurgeRequest:
    """Raises BadRequest or Invalid."""
    return _PURGE.read(body, format)


def read_feedback(body: bytes, format: Format) -> FeedbackRequest:
    """Raises BadRequest or Invalid."""
    return _FEEDBACK.read(body, format)


def read_policy_body(body: bytes, format: Format, policy_id: str) -> Policy:
    """A policy; a null field is an absent one. Raises BadRequest, Invalid or TooLarge."""
    if len(body) > _MAX_POLICY_BYTES:
        raise TooLarge(f"policy: is over {_MAX_POLICY_BYTES:,} bytes")
    fields = _FIELDS.read(body, format)
    nil = _NIL if format is Format.MESSAGEPACK else b"null"
    kept = {name: value for name, value in fields.items() if bytes(value) != nil}
    if format is Format.JSON:
        return read_policy(msgspec.json.encode(kept), policy_id)
    return read_policy(msgspec.msgpack.encode(kept), policy_id, messagepack=True)


def write(payload: Struct, format: Format) -> bytes:
    """The body of a reply. `response` is JSON text; it goes out unchanged, byte for byte."""
    if format is Format.JSON:
        return msgspec.json.encode(payload)
    if isinstance(payload, LookupReply | EntryReply):
        text = payload.response
        if not isinstance(text, UnsetType):
            payload.response = Raw(msgspec.msgpack.encode(bytes(text)))
    return msgspec.msgpack.encode(payload)


def _response(value: bytes, format: Format) -> Raw | UnsetType:
    if format is Format.MESSAGEPACK:
        if value == _NIL:
            return UNSET
        value = _json_text(value)
    return UNSET if value.strip(_JSON_SPACE) == b"null" else Raw(value)


def _json_text(packed: bytes) -> bytes:
    """The text in a MessagePack bin, checked: it will stand unchanged inside JSON replies."""
    try:
        text = msgspec.msgpack.decode(packed, type=bytes)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest("response: in MessagePack it must be a bin that holds JSON text") from exc
    try:
        text.decode("utf-8")
        msgspec.json.decode(text, type=Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        halved = halved_pair(b'{"response":%s}' % text)
        raise halved or BadRequest("response: is not JSON text in UTF-8") from exc
    return text
