"""What spares a short request its detours: a handler's first step at once, a reply in one piece.

asyncio gives a request a task of its own, which begins in the loop's next round; most of the price
of a reply that needs no waiting. And uvicorn writes head and body one by one: two system calls, two
packets, and a reader that is woken twice.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE

from cachesvc.edge.framing import bodiless, until_close
from cachesvc.edge.idle import IdleProtocol

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_JOINED_BYTES = 64 * 1024  # above it a copy costs more than a second write


def begun(work: Coroutine[Any, Any, None]) -> Rest | None:
    """Take the first step of `work` now: what is left of it for a task to do, or None.

    There is no current task in that step: asyncio.timeout() has to wait for the next one.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return Rest(work, awaited)


class Rest(Coroutine[Any, Any, None]):
    """A coroutine that has begun and waits. A cancellation meets it where it waits."""

    __slots__ = ("_awaited", "_has_awaited", "_work")

    def __init__(self, work: Coroutine[Any, Any, None], awaited: Any) -> None:
        self._work = work
        self._awaited = awaited
        self._has_awaited = True

    def send(self, value: Any) -> Any:
        if self._has_awaited:
            self._has_awaited = False
            awaited, self._awaited = self._awaited, None
            return awaited
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        self._has_awaited, self._awaited = False, None
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("a task runs this, nobody awaits it")


class WholeReply:
    """scope["extensions"]["cachesvc.reply"]: sends a reply that is there as a whole.

    As `http.response.start` and one `http.response.body` would, in one write and without waiting.
    False, and nothing is sent, where the reader is behind: then send it as ASGI has it.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def __call__(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """The headers are in lower case, with the body's Content-Length unless the status is 204.

        Raises RuntimeError for a header that HTTP does not allow, and for a second reply.
        """
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected:
            return cycle.disconnected
        if cycle.response_started:
            raise RuntimeError("a reply is on its way already")
        parts = [STATUS_LINE[status]]
        for name, value in headers:
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError("a header holds what HTTP does not allow")
            if name == b"connection":
                cycle.keep_alive = False
            else:
                parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        self._finish(parts, b"" if cycle.scope["method"] == "HEAD" else body)
        return True

    def _finish(self, head: list[bytes], body: bytes) -> None:
        cycle = self._cycle
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if len(body) <= _JOINED_BYTES:
            head.append(body)
            cycle.transport.write(b"".join(head))
        else:
            cycle.transport.write(b"".join(head))
            cycle.transport.write(body)
        cycle.response_complete = True
        cycle.message_event.set()
        # What refers to it by way of the scope would be left to the garbage collector.
        del self._cycle
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class AtOnceProtocol(IdleProtocol):
    """Begins requests for `server_state.at_once` without a task. No 304 is told there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at_once: Container[str] = getattr(self.server_state, "at_once", ())
        self._feeding = False
        self._due: tuple[Any, Any] | None = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self._feeding:
            self._due = cycle, app
        else:
            self._begin(cycle, app)

    def _hold_back(self) -> None:
        """Begin nothing before `_let_go`: the parser is about to be fed."""
        self._feeding = True

    def _let_go(self, *, now: bool) -> None:
        """Begin what has come, and `now` where the app may be asked to."""
        self._feeding = False
        if self._due is not None:
            due, self._due = self._due, None
            self._begin(*due, now=now)

    def _begin(self, cycle: Any, app: Any, *, now: bool = False) -> None:
        """Start the app on a request: in a task, or without one as far as that goes."""
        scope = cycle.scope
        if scope["http_version"] == "1.0":
            app = until_close(app, cycle)
        elif self._at_once:
            scope["extensions"]["cachesvc.reply"] = WholeReply(cycle)
        if not now or cycle.more_body or scope["path"] not in self._at_once:
            work = cycle.run_asgi(bodiless(app, cycle))
        else:
            work = begun(cycle.run_asgi(app))
            if work is None:
                return
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
