"""The service's TLS: client certificates from one CA, TLS 1.3, no resumption."""

from __future__ import annotations

import ssl

from cachesvc.errors import ConfigError


def server_context(cert_file: str, key_file: str, client_ca_file: str) -> ssl.SSLContext:
    """The context of a listener that requires client certificates.

    Without session tickets every connection shows its certificate again: a resumed session is
    accepted even after its CA was removed. Raises ConfigError naming the field.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    _check_readable("cert_file", cert_file)
    _check_readable("key_file", key_file)
    _check_readable("client_ca_file", client_ca_file)
    _load_chain(context, cert_file, key_file)
    try:
        context.load_verify_locations(cafile=client_ca_file)
    except ssl.SSLError as exc:
        raise _wrong("client_ca_file", client_ca_file, "holds no certificate in PEM") from exc
    if not context.get_ca_certs():
        raise _wrong("client_ca_file", client_ca_file, "holds no certificate of a CA")
    return context


def _load_chain(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    try:
        # Without a password of ours, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise _wrong("key_file", key_file, "does not belong to cert_file") from exc
        if not _holds_certificate(cert_file):
            raise _wrong("cert_file", cert_file, "holds no certificate in PEM") from exc
        fault = "holds no private key in PEM without a passphrase"
        raise _wrong("key_file", key_file, fault) from exc


def _holds_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        return False
    return True


def _check_readable(field: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as exc:
        raise _wrong(field, path, f"cannot be read: {exc.strerror}") from exc


def _wrong(field: str, path: str, fault: str) -> ConfigError:
    return ConfigError(f"service.tls.{field}: {path} {fault}")
