"""Scope: who inside a tenant shares answers (`design.md` 5)."""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cachesvc.core.policy import Policy

CREDENTIALS = ("authorization", "x-api-key", "api-key")
ANONYMOUS = "anonymous"
SHARED = "shared"


def scope_of(headers: Mapping[str, Sequence[str]], policy: Policy, secret: bytes) -> str:
    """The scope of a request under a policy. Header values are their bytes, read as latin-1.

    base64url(HMAC-SHA-256(secret, list)): the list holds each credential header that is present
    (unless the policy shares) and each of `scope_headers` in the order given, length-prefixed, so
    that no value can forge another's place, with absent distinct from empty.
    """
    listed = [name.lower() for name in policy.scope_headers]
    credentials = [] if policy.sharing == "shared" else [n for n in CREDENTIALS if headers.get(n)]
    if not credentials and not listed:
        return SHARED if policy.sharing == "shared" else ANONYMOUS
    parts = [_part(name, headers.get(name)) for name in (*credentials, *listed)]
    return _seal(secret, b"scope", parts)


def credential_of(headers: Mapping[str, Sequence[str]], secret: bytes) -> str:
    """A name for the credential itself, to remember that the upstream accepted it."""
    return _seal(secret, b"credential", [_part(n, headers.get(n)) for n in CREDENTIALS])


def _part(name: str, values: Sequence[str] | None) -> bytes:
    items = [name, *(values or ())]
    # Header values are the bytes that were sent, read as latin-1; so are they again here.
    encoded = [item.encode("latin-1") for item in items]
    count = b"absent" if values is None else b"%d" % len(values)
    return count + b"".join(b":%d:%s" % (len(item), item) for item in encoded)


def _seal(secret: bytes, purpose: bytes, parts: list[bytes]) -> str:
    message = purpose + b"".join(b"|%d:%s" % (len(part), part) for part in parts)
    digest = hmac.digest(secret, message, "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
