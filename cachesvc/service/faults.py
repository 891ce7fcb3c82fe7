"""Log lines for what may fail for a while: when it starts, now and then, and when it is over."""

from __future__ import annotations

import logging
import time
import traceback
from typing import TYPE_CHECKING

from cachesvc.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("cachesvc.service")

_AGAIN_SECONDS = 60.0
_CALM_SECONDS = 1.0  # without a failure, before it is over: what fails now and then is not


class FaultLog:
    """The log lines of one thing. However often it fails, they stay few."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._failing = False
        self._failed_at = 0.0
        self._logged_at = 0.0

    def failed(self, reason: str) -> None:
        """`reason` is one line, and quotes no values."""
        now = self._failed_at = self._clock()
        if not self._failing or now - self._logged_at >= _AGAIN_SECONDS:
            self._failing, self._logged_at = True, now
            log.warning("%s: %s", self._what, reason)

    def fine(self) -> None:
        if self._failing and self._clock() - self._failed_at >= _CALM_SECONDS:
            self._failing = False
            log.warning("%s: works again", self._what)


def describe(error: BaseException) -> str:
    """Where an error came from and its types; only our own messages, as others quote values."""
    lines = []
    link: BaseException | None = error
    while link is not None:
        said = f": {link.message}" if isinstance(link, StoreError) else ""
        lines.append(f"{type(link).__name__}{said}")
        frames = traceback.extract_tb(link.__traceback__)
        lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        link = link.__cause__ or link.__context__
    return "\n".join(lines)
