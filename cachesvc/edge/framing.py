"""What uvicorn knows not of the framing of replies: to HTTP/1.0, and of a 304."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def until_close(app: Any, cycle: RequestResponseCycle) -> Any:
    """`app`, whose reply without Content-Length is sent bare (RFC 9112, 6.3, rule 8)."""

    async def framed(scope: Any, receive: Any, send: Any) -> None:
        bare = False

        async def unchunked(message: Any) -> None:
            nonlocal bare
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                bare = b"content-length" not in names
                if bare:
                    cycle.chunked_encoding = False
            elif bare:
                # The cycle takes each piece for all that was announced.
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive, unchunked)
        finally:
            if bare and not cycle.response_complete and not cycle.disconnected:
                # The end of the connection would look like the end of the reply.
                scope["extensions"]["cachesvc.abort"]()

    return framed


def bodiless(app: Any, cycle: RequestResponseCycle) -> Any:
    """`app`, whose 304 may tell the length of what it does not send (RFC 9110, 8.6)."""

    async def framed(scope: Any, receive: Any, send: Any) -> None:
        async def unbounded(message: Any) -> None:
            await send(message)
            if message.get("status") == 304:
                cycle.expected_content_length = 0

        await app(scope, receive, unbounded)

    return framed
