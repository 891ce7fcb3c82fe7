"""Every error cachesvc raises, as one tree.

CacheError
├── ConfigError            a setting is missing or wrong: stops the start
├── StartError             a part cannot start here (port taken, data directory in use, no model)
├── RequestError           the caller's request is refused; carries status and code
│   ├── BadRequest         400  cannot be read as a request
│   ├── Invalid            422  readable, but a value is out of bounds
│   ├── Unauthenticated    401
│   ├── Forbidden          403
│   ├── NotFound           404
│   ├── TooLarge           413
│   ├── UnsupportedMedia   415
│   └── Busy               503  with Retry-After
├── StoreError
│   ├── StoreUnavailable   the database is away, slow, or out of disk: reads may fail open
│   │   └── StoreUnsure    it went away while it committed: written, or not
│   └── StoreRefused       the database refused a statement that should have been right: a bug
├── ServiceError           the service, seen from a client (carries status, code, message)
│   └── ServiceUnavailable no answer: transport fault, deadline, 5xx
├── EmbedError             no vector could be had
├── Unreadable             a proxied request that is not judged, only relayed
├── UpstreamFailed         the upstream did not answer, or broke off (status: 502 or 504)
└── CallerLeft             whoever asked is gone
"""

from __future__ import annotations


class CacheError(Exception):
    """Something in cachesvc failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])

    @property
    def message(self) -> str:
        return str(self.args[0])


class ConfigError(CacheError):
    """A setting is wrong."""


class StartError(CacheError):
    """A part of cachesvc cannot start here."""


class RequestError(CacheError):
    """The request was refused."""

    status = 400
    code = "BAD_REQUEST"


class BadRequest(RequestError):
    """The request cannot be read."""


class Invalid(RequestError):
    """A value is out of bounds."""

    status = 422
    code = "INVALID"


class Unauthenticated(RequestError):
    """The caller is not known."""

    status = 401
    code = "UNAUTHENTICATED"


class Forbidden(RequestError):
    """The caller may not do this."""

    status = 403
    code = "FORBIDDEN"


class NotFound(RequestError):
    """There is no such thing."""

    status = 404
    code = "NOT_FOUND"


class TooLarge(RequestError):
    """The request is too large."""

    status = 413
    code = "TOO_LARGE"


class UnsupportedMedia(RequestError):
    """The content type is not supported."""

    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"


class Busy(RequestError):
    """Too many requests are waiting; try again later."""

    status = 503
    code = "BUSY"
    retry_after_seconds = 1


class StoreError(CacheError):
    """The store failed."""


class StoreUnavailable(StoreError):
    """The database did not answer in time."""


class StoreUnsure(StoreUnavailable):
    """The database did not tell whether it has written."""


class StoreRefused(StoreError):
    """The database refused a statement."""


class ServiceError(CacheError):
    """The service refused a call."""

    def __init__(self, message: str, *, status: int = 0, code: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ServiceUnavailable(ServiceError):
    """The service did not answer."""


class EmbedError(CacheError):
    """The text could not be embedded."""


class Unreadable(CacheError):
    """The request is not one this protocol can read."""


class UpstreamFailed(CacheError):
    """The upstream did not answer, or broke off."""

    def __init__(self, message: str, *, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


class CallerLeft(CacheError):
    """Whoever asked is gone."""
