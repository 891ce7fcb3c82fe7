"""cachesvc: a cache for LLM answers that runs beside a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachesvc.client import CacheClient
    from cachesvc.inprocess.transport import CachingTransport

__all__ = ["CacheClient", "CachingTransport", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Loaded when asked for: the service and the proxy import this package, but not httpx.
    if name == "CacheClient":
        from cachesvc.client import CacheClient

        return CacheClient
    if name == "CachingTransport":
        from cachesvc.inprocess.transport import CachingTransport

        return CachingTransport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
