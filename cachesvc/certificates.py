"""A small PKI to start with: one CA, the service's certificate, a client's and an admin's.

EC P-256. A client is named by its only SAN, a URI, as SPIFFE does it; CN is for people to read.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cachesvc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_NAMES = ("localhost", "127.0.0.1", "::1")
LEAF_DAYS = 825
_CA_DAYS = 3650
# Clocks of other machines may be a little behind.
_BACKDATE = timedelta(minutes=5)
_TENANT = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(\*\.)?{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True)
class Made:
    """The files by name (`service.pem` …), and the settings that use them."""

    files: dict[str, Path]
    toml: str


@dataclass(frozen=True)
class _Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def files(self, name: str) -> dict[str, bytes]:
        pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {f"{name}.pem": pem, f"{name}.key": key}


def make(
    out: Path,
    *,
    service_names: Sequence[str] = DEFAULT_NAMES,
    tenant: str,
    force: bool,
    leaf_days: int = LEAF_DAYS,
) -> Made:
    """Write ca, service, client and admin, each `.pem` and `.key` (0600), into `out`.

    `out` is made 0700 if absent; one that exists keeps its mode. Raises ConfigError: a name or the
    tenant is wrong, a file stands already (without `force`), or `out` cannot be written.
    """
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(f"tenant: is {tenant!r}; must match {_TENANT.pattern}")
    if not 1 <= leaf_days <= _CA_DAYS:
        raise ConfigError(f"leaf_days: is {leaf_days}; must be 1 to {_CA_DAYS:,}")
    sans = [_service_san(name) for name in dict.fromkeys(service_names or DEFAULT_NAMES)]
    out = out.expanduser().absolute()
    contents = _issue_all(sans, tenant, leaf_days)
    paths = {name: out / name for name in contents}
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        standing = [path for path in paths.values() if os.path.lexists(path)]
        if standing and not force:
            raise ConfigError(f"{standing[0]}: is there already; --force writes over it")
        for name, content in contents.items():
            _write(paths[name], content, 0o600 if name.endswith(".key") else 0o644)
    except OSError as exc:
        raise ConfigError(f"{out}: cannot be written: {exc.strerror}") from exc
    return Made(paths, _toml(paths, tenant))


def valid_until(path: str) -> datetime:
    """When the first certificate of a PEM file expires. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(Path(path).read_bytes()).not_valid_after_utc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: is not a certificate in PEM") from exc


def _issue_all(sans: list[x509.GeneralName], tenant: str, days: int) -> dict[str, bytes]:
    ca = _issue_ca()
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    contents = ca.files("ca") | _issue(ca, "service", sans, server, days).files("service")
    for name in ("client", "admin"):
        uri = x509.UniformResourceIdentifier(_uri(tenant, name))
        contents |= _issue(ca, name, [uri], client, days).files(name)
    return contents


def _issue_ca() -> _Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("CA")
    certificate = (
        _builder(name, name, key.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Issued(certificate, key)


def _issue(
    ca: _Issued,
    name: str,
    sans: list[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    days: int,
) -> _Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    certificate = (
        _builder(_name(name), ca.certificate.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca.key, hashes.SHA256())
    )
    return _Issued(certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    start = datetime.now(timezone.utc) - _BACKDATE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(what: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"cachesvc {what}")])


def _uri(tenant: str, name: str) -> str:
    return f"spiffe://cachesvc/{tenant}/{name}"


def _service_san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _HOST.fullmatch(name):
            raise ConfigError(
                f"service name: {name!r} is neither a DNS name nor an IP address"
            ) from None
        return x509.DNSName(name)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Put a whole file in place at once: a reader sees the old one or the new one, never half."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _toml(paths: dict[str, Path], tenant: str) -> str:
    def path(name: str) -> str:
        return json.dumps(str(paths[name]), ensure_ascii=False)

    identities = "".join(
        f'\n[[identity]]\nsan = "URI:{_uri(tenant, name)}"\n'
        f'tenant = "{tenant}"\nroles = ["{role}"]\n'
        for name, role in (("client", "data"), ("admin", "admin"))
    )
    return (
        "[service.tls]\n"
        f"cert_file = {path('service.pem')}\n"
        f"key_file = {path('service.key')}\n"
        f"client_ca_file = {path('ca.pem')}\n"
        "\n[proxy]\n"
        'service_url = "https://localhost:8700"\n'
        "# Keys the scopes: the same in every proxy that shares a cache, known to nobody else.\n"
        f'scope_secret = "{secrets.token_urlsafe(32)}"\n'
        "[proxy.tls]\n"
        f"cert_file = {path('client.pem')}\n"
        f"key_file = {path('client.key')}\n"
        f"ca_file = {path('ca.pem')}\n" + identities
    )
