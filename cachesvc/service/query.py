"""The query of a GET, read into a wire type as bodies are: unknown parameters are ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl

import msgspec

from cachesvc.errors import BadRequest, Invalid

if TYPE_CHECKING:
    from msgspec import Struct

_T = TypeVar("_T", bound="Struct")
_FIELDS_AT_MOST = 100


def read_query(query: str, kind: type[_T]) -> _T:
    """The parameters as a `kind`; a field that is a list may be given several times.

    Raises BadRequest for what is no query, and Invalid for a value that is none of its field's.
    """
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_AT_MOST
        )
    except UnicodeDecodeError as exc:
        raise BadRequest("query: holds text that is not UTF-8") from exc
    except ValueError as exc:
        raise BadRequest(f"query: has more than {_FIELDS_AT_MOST} parameters") from exc
    made: dict[str, str | list[str]] = {}
    for field in msgspec.structs.fields(kind):
        given = [value for name, value in pairs if name == field.name]
        if len(given) > 1 and field.default_factory is not list:
            raise Invalid(f"{field.name}: is given twice")
        if given:
            made[field.name] = given if field.default_factory is list else given[0]
    try:
        return msgspec.convert(made, kind, strict=False)
    except msgspec.ValidationError as exc:
        what, _, where = str(exc).replace("`", "").partition(" - at $.")
        number = "a whole number" if "expected int" in what.lower() else "a number"
        raise Invalid(f"{where}: must be {number}") from exc
