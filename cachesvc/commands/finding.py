"""What the doctor says of one thing."""

from __future__ import annotations

from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    """One line of the report; `advice` says what to do about a warning or a failure."""

    what: str
    state: str
    found: str
    advice: str = ""
