"""What a connection may take, and what the head of a request must be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True)
class Limits:
    """What one connection may take. Seconds and bytes."""

    # From the first byte of a request, or from the connection's start, to the end of the headers.
    header_seconds: float = 10.0
    handshake_seconds: float = 5.0
    # A request body of which nothing comes for this long is refused. None: uploads may be slow.
    body_seconds: float | None = 30.0
    # Above it a connection is answered 503 and closed, so that those there are go on.
    max_connections: int = 10_000
    # A reader that takes nothing at all for this long is broken off.
    stall_seconds: float = 60.0
    # Above what gateways and clients keep idle connections (nginx, ALB 60 s; Go 90 s): whoever
    # closes first must be the caller, or its next request meets a closed connection.
    keep_alive_seconds: int = 120
    max_headers: int = 100
    max_head_bytes: int = 32 * 1024


_CODES = {400: "BAD_REQUEST", 503: "BUSY"}


class Refused(Exception):
    """The request is refused unseen by the app: status, and what is wrong."""


def envelope(status: int, message: str) -> bytes:
    """A refusal in the service's words: the JSON body."""
    code = _CODES.get(status, "TOO_LARGE")
    return json.dumps({"error": {"code": code, "message": message}}).encode()


def closing_reply(status: int, body: bytes) -> bytes:
    """A whole reply, of JSON, after which the connection is closed."""
    again = "retry-after: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"{again}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def check_head(method: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises Refused for a head that two servers could read in two ways (RFC 9112, 3.2 and 6)."""
    hosts, lengths = 0, 0
    codings: list[bytes] = []
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            lengths += 1
        elif name == b"transfer-encoding":
            codings.append(value.lower())
    if version not in ("1.0", "1.1"):
        raise Refused(400, "version: must be HTTP/1.0 or HTTP/1.1")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise Refused(400, "Host: must be there exactly once")
    if method == b"CONNECT":
        raise Refused(400, "CONNECT: is not supported")
    if codings and lengths:
        raise Refused(400, "Content-Length and Transfer-Encoding: exclude each other")
    if codings and (version == "1.0" or codings != [b"chunked"]):
        raise Refused(400, "Transfer-Encoding: must be chunked, in HTTP/1.1")
