"""uvicorn's protocol, and its patience with a peer that sends nothing, or reads nothing.

A timer that is set and cancelled for each pause between requests costs two microseconds, and on a
connection in use it never fires. So it is left to run: when it fires it sees how long the
connection has been idle, and goes on for what is left.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cachesvc.edge.limits import Limits

if TYPE_CHECKING:
    import asyncio


class IdleProtocol(HttpToolsProtocol):
    """Closes a connection that is idle, breaks off one whose peer takes nothing of a reply."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits: Limits = getattr(self.server_state, "limits", None) or Limits()
        self._idle_since: float | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    @abstractmethod
    def abort(self) -> None:
        """Break the connection off."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._watch_idle(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _watch_idle(self, seconds: float) -> None:
        self._idle_timer = self.loop.call_later(seconds, self._look_idle)

    def _look_idle(self) -> None:
        self._idle_timer = None
        if self._idle_since is None:
            return  # the end of the reply sets it again
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._watch_idle(left)
        else:
            self.timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.limits.stall_seconds, self._check_reader, left)

    def _check_reader(self, left: int) -> None:
        if self.transport.get_write_buffer_size() < left:
            self._watch_reader()
        else:
            self.abort()
