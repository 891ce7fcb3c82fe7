"""The one wall in front of a service without TLS: it answers to a loopback name only.

A web page may have its own name resolve to 127.0.0.1 and then call us from a browser on the same
machine (DNS rebinding); the `Host` it sends still tells its name.
"""

from __future__ import annotations

import re
from functools import lru_cache

from cachesvc.config_checks import is_loopback

_HOST = re.compile(r"(localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{0,5})?", re.IGNORECASE)


@lru_cache(maxsize=256)
def is_loopback_host(host: bytes) -> bool:
    """True for `localhost`, 127.0.0.0/8 and `[::1]`, with any port or none."""
    found = _HOST.fullmatch(host.decode("latin-1"))
    return found is not None and is_loopback(found[1].removeprefix("[").removesuffix("]"))
