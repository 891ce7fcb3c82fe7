"""What spares a short request its detours: a handler's first step at once, a reply in one piece.

asyncio gives a request a task of its own, which begins in the loop's next round; most of the price
of a reply that needs no waiting. And uvicorn writes head and body one by one: two system calls, two
packets, and a reader that is woken twice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import ref

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE

from cachesvc.begun import begun
from cachesvc.edge.framing import bodiless, until_close
from cachesvc.edge.idle import IdleProtocol

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_JOINED_BYTES = 64 * 1024  # above it a copy costs more than a second write


class WholeReply:
    """scope["extensions"]["cachesvc.reply"]: sends a reply that is there as a whole.

    As `http.response.start` and one `http.response.body` would, in one write and without waiting.
    False, and nothing is sent, where the reader is behind: then send it as ASGI has it.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        # The cycle has it in its scope: held here, both would be left to the garbage collector.
        self._cycle = ref(cycle)

    def __call__(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """The headers are in lower case, with the body's Content-Length unless the status is 204.

        Raises RuntimeError for a header that HTTP does not allow, and for a second reply.
        """
        cycle = self._cycle()
        if cycle is None:
            return True  # nobody is there any more
        if cycle.flow.write_paused or cycle.disconnected:
            return cycle.disconnected
        if cycle.response_started:
            raise RuntimeError("a reply is on its way already")
        parts = [STATUS_LINE[status]]
        for name, value in headers:
            if name == b"connection":
                cycle.keep_alive = False
            else:
                parts.append(_line(name, value))
        parts.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        _finish(cycle, parts, b"" if cycle.scope["method"] == "HEAD" else body)
        return True


def _finish(cycle: RequestResponseCycle, head: list[bytes], body: bytes) -> None:
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
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


@lru_cache(maxsize=1024)
def _line(name: bytes, value: bytes) -> bytes:
    """Most replies have the headers of others. Raises RuntimeError for what HTTP does not allow."""
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise RuntimeError("a header holds what HTTP does not allow")
    return b"%s: %s\r\n" % (name, value)


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
        else:
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
