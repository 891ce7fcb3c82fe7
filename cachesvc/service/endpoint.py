"""One path of the service: an ASGI app over its methods, and the guard around all of them."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from cachesvc.errors import Forbidden, NotFound, RequestError, StoreUnavailable
from cachesvc.service.exchange import (
    Call,
    ClientGone,
    Exchange,
    Reply,
    refusal,
    refused,
    retry_later,
)
from cachesvc.service.faults import describe, log
from cachesvc.service.hosts import is_loopback_host

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from cachesvc.service.identity import Identities
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.settings import Settings

Handler = Callable[[Call], Awaitable[Reply]]
OpenHandler = Callable[[], Awaitable[Reply]]
_WITH_BODY = frozenset(("POST", "PUT"))


class Guard:
    """What surrounds every path: who may come in, and what becomes of a failure."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        service = settings.service
        self.max_request_bytes = service.max_request_bytes
        self._telemetry = telemetry
        self._loopback_only = not service.tls.on and not service.insecure

    def admit(self, exchange: Exchange) -> None:
        """Raises Forbidden where only loopback names are answered and this is none."""
        if self._loopback_only and not (exchange.hosts == 1 and is_loopback_host(exchange.host)):
            raise Forbidden("Host: without TLS only a loopback name is answered")

    def failure(self, exchange: Exchange, error: Exception) -> Reply:
        """What becomes of an exchange that an error ended."""
        if isinstance(error, RequestError):
            if error.status == 503:
                self._telemetry.failed("busy")
            return refused(error)
        if isinstance(error, StoreUnavailable):
            self._telemetry.failed("unavailable")
            return retry_later(503, "UNAVAILABLE", error.message)
        self._telemetry.failed("internal")
        request_id = exchange.request_id or uuid.uuid4().hex
        log.error("request %s failed: %s", request_id, describe(error))
        message = "an internal error; the log has it under the request id in x-request-id"
        headers = ((b"x-request-id", request_id.encode()),)
        return refusal(500, "INTERNAL", message, headers)


class _Path(ABC):
    """An ASGI app for one path."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            reply = await self._answer(exchange)
        except ClientGone:
            return
        except Exception as exc:
            # The one place that catches everything: a bug must cost its caller an answer in the
            # agreed shape, and nobody else anything.
            reply = self._guard.failure(exchange, exc)
        await exchange.answer(reply)

    @abstractmethod
    async def _answer(self, exchange: Exchange) -> Reply: ...


class Endpoint(_Path):
    """A path that asks who is calling."""

    def __init__(self, guard: Guard, identities: Identities, handlers: dict[str, Handler]) -> None:
        super().__init__(guard)
        self._identities = identities
        self.handlers = handlers

    async def _answer(self, exchange: Exchange) -> Reply:
        self._guard.admit(exchange)
        method = "GET" if exchange.method == "HEAD" else exchange.method
        handler = self.handlers.get(method)
        if handler is None:
            return _not_allowed(self.handlers)
        caller = self._identities.identify(exchange.scope)
        parameters: dict[str, str] = exchange.scope["path_params"]
        if method not in _WITH_BODY:
            query = exchange.scope.get("query_string", b"").decode("ascii", "replace")
            return await handler(Call(caller, parameters, exchange.request_id, query=query))
        body, format = await exchange.read(self._guard.max_request_bytes)
        return await handler(Call(caller, parameters, exchange.request_id, format, body))


class OpenEndpoint(_Path):
    """A path that anybody may GET."""

    def __init__(self, guard: Guard, handler: OpenHandler) -> None:
        super().__init__(guard)
        self.handlers = {"GET": handler}

    async def _answer(self, exchange: Exchange) -> Reply:
        self._guard.admit(exchange)
        if exchange.method not in ("GET", "HEAD"):
            return _not_allowed(self.handlers)
        return await self.handlers["GET"]()


class Nowhere(_Path):
    """Every path that is none of ours."""

    async def _answer(self, exchange: Exchange) -> Reply:
        self._guard.admit(exchange)
        raise NotFound("path: there is nothing here")


def _not_allowed(allowed: dict[str, Handler] | dict[str, OpenHandler]) -> Reply:
    names = ", ".join(allowed)
    headers = ((b"allow", names.encode()),)
    return refusal(405, "METHOD_NOT_ALLOWED", f"method: must be {names}", headers)
