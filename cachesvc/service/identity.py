"""Who calls: the certificate of the connection, never a header or a body, chooses the tenant."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cryptography import x509

from cachesvc.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesvc.settings import Identity

_PARTS_OF_DATA = frozenset({"lookup", "put", "feedback"})
_PARSED = "cachesvc.certificate"


@dataclass(frozen=True)
class Caller:
    """A known caller: what `name` (its SAN or fingerprint) may do as which tenant."""

    tenant: str
    roles: frozenset[str]
    name: str

    def may(self, role: str) -> bool:
        """True if the roles grant `role`: admin grants all, data grants its three parts."""
        if role in self.roles or "admin" in self.roles:
            return True
        return role in _PARTS_OF_DATA and "data" in self.roles


LOCAL = Caller("default", frozenset({"data", "admin"}), "local")


@dataclass(frozen=True)
class _Certificate:
    """A leaf: SHA-256 in hex, its URI and DNS SANs, when it ends. `names` None: unreadable."""

    sha256: str
    names: tuple[str, ...] | None
    not_after: datetime


class Identities:
    """The table of `[[identity]]`. Without TLS everybody is LOCAL."""

    def __init__(self, identities: tuple[Identity, ...], tls: bool) -> None:
        self._tls = tls
        self._by_san: dict[str, Caller] = {}
        self._by_fingerprint: dict[str, Caller] = {}
        for row in identities:
            roles = frozenset(row.roles)
            if row.sha256:
                name = f"sha256:{row.sha256}"
                self._by_fingerprint[row.sha256] = Caller(row.tenant, roles, name)
            else:
                self._by_san[row.san] = Caller(row.tenant, roles, row.san)

    def identify(self, scope: Mapping[str, Any]) -> Caller:
        """The caller of an ASGI request. Raises Unauthenticated.

        A fingerprint in the table decides; else the URI and DNS SANs together must be exactly one,
        and stand in the table byte for byte. CN, addresses and e-mail names count for nothing.
        """
        if not self._tls:
            return LOCAL
        certificate = _certificate(scope)
        # Asked per request: a kept connection does not outlive its certificate.
        if datetime.now(timezone.utc) > certificate.not_after:
            raise Unauthenticated("client certificate: has expired")
        caller = self._by_fingerprint.get(certificate.sha256)
        if caller is not None:
            return caller
        if certificate.names is None:
            raise Unauthenticated("client certificate: its SANs cannot be read")
        if len(certificate.names) != 1:
            found = len(certificate.names)
            raise Unauthenticated(f"client certificate: has {found} URI and DNS SANs; must have 1")
        caller = self._by_san.get(certificate.names[0])
        if caller is None:
            raise Unauthenticated("client certificate: its SAN is in no [[identity]]")
        return caller


def _certificate(scope: Mapping[str, Any]) -> _Certificate:
    tls = (scope.get("extensions") or {}).get("tls") or {}
    parsed: _Certificate | None = tls.get(_PARSED)
    if parsed is None:
        chain = list(tls.get("client_cert_chain") or ())
        if not chain:
            raise Unauthenticated("client certificate: is required")
        # The dict lives as long as the connection, so a certificate is parsed once.
        parsed = tls[_PARSED] = _parse(chain[0])
    return parsed


def _parse(pem: str) -> _Certificate:
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
        leaf = x509.load_der_x509_certificate(der)
        not_after = leaf.not_valid_after_utc
    except (ValueError, x509.InvalidVersion) as exc:
        raise Unauthenticated("client certificate: cannot be read") from exc
    return _Certificate(hashlib.sha256(der).hexdigest(), _names(leaf), not_after)


def _names(leaf: x509.Certificate) -> tuple[str, ...] | None:
    """The URI and DNS SANs as the table writes them; None if one is not printable ASCII."""
    try:
        sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        kinds = {x509.UniformResourceIdentifier: "URI:", x509.DNSName: "DNS:"}
        names = tuple(kinds[type(san)] + str(san.value) for san in sans if type(san) in kinds)
    except x509.ExtensionNotFound:
        return ()
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    # IA5String is ASCII; NUL and other controls have cut names short in other readers.
    return names if all(name.isascii() and name.isprintable() for name in names) else None
