"""`/openapi.json`: OpenAPI 3.1, made from the wire types, so that the two cannot drift."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cachesvc import __version__, wire, wire_admin
from cachesvc.core.policy import Policy
from cachesvc.service.exchange import Reply
from cachesvc.service.health import State

_REF = "#/components/schemas/{name}"
_FORMATS = ("application/json", "application/msgpack")
_PARAMETER = re.compile(r"\{(\w+)\}")
_ERRORS = {
    400: ("BadRequest", "BAD_REQUEST: unparsable, or something is missing or of a wrong type."),
    401: ("Unauthenticated", "UNAUTHENTICATED: the client certificate names nobody known."),
    403: ("Forbidden", "FORBIDDEN: the caller lacks the role, or calls a name we do not answer."),
    404: ("NotFound", "NOT_FOUND: there is no such thing; also another tenant's."),
    405: ("MethodNotAllowed", "METHOD_NOT_ALLOWED: `Allow` says which are."),
    413: ("TooLarge", "TOO_LARGE: the body is over max_request_bytes."),
    415: ("UnsupportedMedia", "UNSUPPORTED_MEDIA_TYPE: neither JSON nor MessagePack, or encoded."),
    422: ("Invalid", "INVALID: a value is out of bounds."),
    500: ("Internal", "INTERNAL: a bug; the log has it under x-request-id."),
    503: ("Unavailable", "UNAVAILABLE or BUSY: try again after `Retry-After` seconds."),
}
_LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
_EVERYWHERE = (403, 405, 500, 503)
_WITH_BODY = (400, 413, 415, 422)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `replies` maps a status to the type of its body, or None."""

    method: str
    path: str
    summary: str
    replies: dict[int, type | None]
    body: type | None = None
    role: str | None = None  # None: open to everybody
    errors: tuple[int, ...] = ()
    text: str = field(default="")  # the media type of a reply that is no wire type
    query: type | None = None


_CACHE = (
    Operation(
        "post",
        "/cache/lookup",
        "Ask for an answer: 200 for a hit and for a miss",
        {200: wire.LookupReply},
        wire.LookupRequest,
        "lookup",
        (404,),
    ),
    Operation(
        "post",
        "/cache/put",
        "Keep an answer",
        {200: wire.PutReply},
        wire.PutRequest,
        "put",
        (404,),
    ),
    Operation(
        "post",
        "/cache/feedback",
        "Judge an answer: a wrong one is quarantined at once",
        {200: wire.FeedbackReply},
        wire.FeedbackRequest,
        "feedback",
        (404,),
    ),
    Operation(
        "post",
        "/cache/purge",
        "Remove what all selectors select",
        {200: wire_admin.PurgeReply},
        wire_admin.PurgeRequest,
        "admin",
        (404,),
    ),
    Operation(
        "get",
        "/cache/entries",
        "What is stored, newest first, page by page",
        {200: wire_admin.EntryList},
        role="admin",
        errors=(400, 422),
        query=wire_admin.EntryFilter,
    ),
    Operation(
        "get",
        "/cache/entries/{entry_id}",
        "One entry and where it came from",
        {200: wire_admin.EntryReply},
        role="admin",
        errors=(404,),
    ),
    Operation(
        "delete",
        "/cache/entries/{entry_id}",
        "Remove one entry with its aliases",
        {204: None},
        role="admin",
        errors=(404,),
    ),
)
_ADMIN = (
    Operation("get", "/policies", "Every policy", {200: wire.PolicyList}, role="data or admin"),
    Operation(
        "get",
        "/policies/{policy_id}",
        "One policy, every default written out",
        {200: Policy},
        role="data or admin",
        errors=(404, 422),
    ),
    Operation(
        "put",
        "/policies/{policy_id}",
        "Create a policy, or replace it whole",
        {200: Policy, 201: Policy},
        Policy,
        "admin",
    ),
    Operation(
        "delete",
        "/policies/{policy_id}",
        "Remove a policy and what it holds",
        {204: None},
        role="admin",
        errors=(404, 422),
    ),
    Operation(
        "get", "/stats", "What each policy holds", {200: wire_admin.StatsReply}, role="admin"
    ),
)
_OPEN = (
    Operation("get", "/livez", "200 while the process runs", {200: State}),
    Operation("get", "/readyz", "200 while the database answers", {200: State}),
    Operation("get", "/metrics", "Prometheus metrics", {200: None}, text="text/plain"),
    Operation("get", "/openapi.json", "This document", {200: None}, text="application/json"),
)
OPERATIONS = (*_CACHE, *_ADMIN, *_OPEN)


class OpenAPI:
    """The handler."""

    def __init__(self) -> None:
        self._text = document()

    async def __call__(self) -> Reply:
        return Reply(text=self._text, media_type=b"application/json")


def document() -> bytes:
    """The document as JSON text."""
    types = {kind for operation in OPERATIONS for kind in _types(operation)}
    _, schemas = msgspec.json.schema_components(
        sorted(types, key=lambda kind: kind.__name__), ref_template=_REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        for path in paths_of(operation.path):
            paths.setdefault(path, {})[operation.method] = _operation(operation, path)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "cachesvc", "version": __version__, "license": _LICENSE},
            "paths": paths,
            "components": {"schemas": schemas, "responses": _error_responses()},
        }
    )


def paths_of(path: str) -> tuple[str, ...]:
    """Where a path answers: AISIX data planes call /dp/cache/*."""
    return (path, f"/dp{path}") if path.startswith("/cache/") else (path,)


def _types(operation: Operation) -> set[type]:
    kinds = {wire.ErrorReply, operation.body, *operation.replies.values()}
    return {kind for kind in kinds if kind is not None}


def _operation(operation: Operation, path: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{re.sub('[^a-z]+', '_', path)}".rstrip("_"),
        "responses": _responses(operation),
    }
    if operation.role is not None:
        made["description"] = f"Needs the role {operation.role}."
    names = _PARAMETER.findall(path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    if operation.query is not None:
        parameters += _query(operation.query)
    if parameters:
        made["parameters"] = parameters
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": _content(operation.body)}
    return made


def _query(kind: type) -> list[dict[str, Any]]:
    """The fields of a wire type as parameters; a list is a parameter given several times."""
    _, schemas = msgspec.json.schema_components([kind], ref_template=_REF)
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in schemas[kind.__name__]["properties"].items()
    ]


def _responses(operation: Operation) -> dict[str, Any]:
    replies: dict[str, Any] = {}
    for status, kind in operation.replies.items():
        reply: dict[str, Any] = {"description": operation.summary}
        if operation.text:
            reply["content"] = {operation.text: {"schema": {}}}
        elif kind is not None:
            reply["content"] = _content(kind)
        replies[str(status)] = reply
    errors = {*_EVERYWHERE, *operation.errors}
    errors |= {401} if operation.role is not None else set()
    errors |= set(_WITH_BODY) if operation.body is not None else set()
    for status in sorted(errors):
        replies[str(status)] = {"$ref": f"#/components/responses/{_ERRORS[status][0]}"}
    return replies


def _content(kind: type) -> dict[str, Any]:
    schema = {"$ref": _REF.format(name=kind.__name__)}
    return {media_type: {"schema": schema} for media_type in _FORMATS}


def _error_responses() -> dict[str, Any]:
    return {
        name: {"description": what, "content": _content(wire.ErrorReply)}
        for name, what in _ERRORS.values()
    }
