"""Which calls an SDK makes again, so that one question is counted once."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

# OpenAI's and Anthropic's SDKs say how often they have tried before.
RETRY_HEADER = "x-stainless-retry-count"
_SECONDS = 600.0
_MOST = 10_000


class Repeats:
    """The calls of late. The header alone proves nothing: the first try may not have come here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[Hashable, float] = OrderedDict()

    def again(self, call: Hashable, headers: Mapping[str, Sequence[str]]) -> bool:
        """Whether this is another try of a call of the last ten minutes."""
        said = headers.get(RETRY_HEADER, ("",))[0]
        seen = self._seen.get(call)
        now = self._clock()
        self._seen[call] = now
        self._seen.move_to_end(call)
        while len(self._seen) > _MOST:
            self._seen.popitem(last=False)
        tried = said.isdecimal() and said.isascii() and said.strip("0") != ""
        return tried and seen is not None and now - seen <= _SECONDS
