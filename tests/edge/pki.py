"""Certificates of every kind a peer may show, made with `cryptography`."""

from __future__ import annotations

import itertools
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cachesvc.edge.server import ServerTLS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
SAN_OID = x509.ObjectIdentifier("2.5.29.17")
_numbers = itertools.count()


def uri(value: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(value)


def raw_san(*names: tuple[int, bytes]) -> x509.UnrecognizedExtension:
    """A SAN extension in raw DER: (tag, bytes), 6 for a URI and 2 for DNS. Up to 127 bytes."""
    body = b"".join(bytes([0x80 | tag, len(value)]) + value for tag, value in names)
    assert len(body) < 128
    return x509.UnrecognizedExtension(SAN_OID, bytes([0x30, len(body)]) + body)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in memory and in files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    cert_file: str
    key_file: str

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def sha256(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()


class CA:
    """An authority that signs whatever it is asked to."""

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _start(self._name, self._name, self._key.public_key())
            .not_valid_after(datetime.now(timezone.utc) + timedelta(days=2))
            .not_valid_before(datetime.now(timezone.utc) - timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pair = _save(directory, certificate, self._key)

    def issue(
        self,
        sans: Sequence[x509.GeneralName] | x509.UnrecognizedExtension = (),
        *,
        usage: x509.ObjectIdentifier = CLIENT,
        start: timedelta = timedelta(hours=-1),
        end: timedelta = timedelta(hours=1),
        cn: str = "someone",
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(timezone.utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)])
        builder = (
            _start(subject, self._name, key.public_key())
            .not_valid_before(now + start)
            .not_valid_after(now + end)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if isinstance(sans, x509.UnrecognizedExtension):
            builder = builder.add_extension(sans, critical=False)
        elif sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return _save(self._directory, builder.sign(self._key, hashes.SHA256()), key)

    def server_tls(self) -> ServerTLS:
        pair = self.issue([x509.DNSName("localhost")], usage=SERVER)
        return ServerTLS(pair.cert_file, pair.key_file, self.pair.cert_file)

    def client_context(self, pair: Pair | None) -> ssl.SSLContext:
        """A client's context that trusts this CA and shows `pair`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=self.pair.cert_file)
        if pair is not None:
            context.load_cert_chain(pair.cert_file, pair.key_file)
        return context


def _start(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
    )


def _save(directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    stem = directory / f"pair{next(_numbers)}"
    cert_file, key_file = stem.with_suffix(".pem"), stem.with_suffix(".key")
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Pair(certificate, key, str(cert_file), str(key_file))
