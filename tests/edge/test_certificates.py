"""What `certificates.make` writes works as it is, and harms nothing that stands."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import subprocess
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from cachesvc import certificates, config
from cachesvc.edge.server import ServerTLS
from cachesvc.errors import ConfigError
from cachesvc.service.identity import Identities
from tests.edge.running import App, Running

if TYPE_CHECKING:
    from pathlib import Path

    from cachesvc.certificates import Made

NAMES = ["ca", "service", "client", "admin"]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return certificates.make(tmp_path / "pki", service_names=[], tenant="acme", force=False)


def load(made: Made, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(made.files[f"{name}.pem"].read_bytes())


def test_the_settings_it_prints_work_as_they_are(made: Made, loop: str, tmp_path: Path) -> None:
    file = tmp_path / "cachesvc.toml"
    file.write_text(made.toml, "utf-8")
    settings = config.load(str(file))
    tls = settings.service.tls
    app = App(Identities(settings.identity, tls=True))
    server_tls = ServerTLS(tls.cert_file, tls.key_file, tls.client_ca_file)

    told = {}
    with Running(app, loop, server_tls) as edge:
        for name in ("client", "admin"):
            context = ssl.create_default_context(cafile=settings.proxy.tls.ca_file)
            context.load_cert_chain(made.files[f"{name}.pem"], made.files[f"{name}.key"])
            for host in ("localhost", "127.0.0.1"):
                reply = httpx.get(f"https://{host}:{edge.port}/whoami", verify=context)
                told[name, host] = reply.json()["name"]

    assert set(told.values()) == {
        "URI:spiffe://cachesvc/acme/client",
        "URI:spiffe://cachesvc/acme/admin",
    }
    assert [(row.tenant, row.roles) for row in settings.identity] == [
        ("acme", ("data",)),
        ("acme", ("admin",)),
    ]
    assert settings.proxy.tls.cert_file == str(made.files["client.pem"])


def test_the_service_may_not_call_itself(made: Made, loop: str) -> None:
    files = {name: str(path) for name, path in made.files.items()}
    server_tls = ServerTLS(files["service.pem"], files["service.key"], files["ca.pem"])
    context = ssl.create_default_context(cafile=files["ca.pem"])
    context.load_cert_chain(files["service.pem"], files["service.key"])
    with Running(App(), loop, server_tls) as edge, pytest.raises(httpx.TransportError):
        httpx.get(f"{edge.url}/whoami", verify=context)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("name", "purpose"), [("service", "sslserver"), ("client", "sslclient"), ("admin", "sslclient")]
)
def test_openssl_agrees(made: Made, name: str, purpose: str) -> None:
    verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile"]
    paths = [str(made.files["ca.pem"]), str(made.files[f"{name}.pem"])]

    assert subprocess.run([*verify, *paths], capture_output=True, check=False).returncode == 0


def test_keys_and_their_directory_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = certificates.make(tmp_path / "pki", tenant="acme", force=False)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in made.files.items()}
    assert modes == {f"{n}.pem": 0o644 for n in NAMES} | {f"{n}.key": 0o600 for n in NAMES}


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    certificates.make(tmp_path, tenant="acme", force=False)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert sorted(os.listdir(tmp_path)) == sorted(f"{n}.{e}" for n in NAMES for e in ("key", "pem"))


def test_a_file_that_stands_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    standing = tmp_path / "client.key"
    standing.write_text("mine")
    with pytest.raises(ConfigError) as failure:
        certificates.make(tmp_path, tenant="acme", force=False)

    assert str(standing) in failure.value.message
    assert os.listdir(tmp_path) == ["client.key"]
    assert standing.read_text() == "mine"


def test_force_writes_over_a_link_and_not_through_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    out = tmp_path / "pki"
    out.mkdir()
    (out / "ca.key").symlink_to(elsewhere)

    certificates.make(out, tenant="acme", force=True)

    assert elsewhere.read_text() == "mine"
    assert not (out / "ca.key").is_symlink()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        certificates.make(tmp_path / "file" / "pki", tenant="acme", force=False)


def test_the_ca_signs_leaves_only(made: Made) -> None:
    extensions = load(made, "ca").extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value

    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)


@pytest.mark.parametrize("name", ["client", "admin"])
def test_a_client_has_exactly_one_name(made: Made, name: str) -> None:
    extensions = load(made, name).extensions
    sans = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value

    assert list(sans) == [x509.UniformResourceIdentifier(f"spiffe://cachesvc/acme/{name}")]
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_service_has_the_names_it_was_given(tmp_path: Path) -> None:
    made = certificates.make(
        tmp_path, service_names=["cache.internal", "10.0.0.7", "::1"], tenant="acme", force=False
    )
    extensions = load(made, "service").extensions
    sans = extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert sans.get_values_for_type(x509.DNSName) == ["cache.internal"]
    assert [str(a) for a in sans.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("days", [825, 1])
def test_leaves_live_as_long_as_asked_from_five_minutes_ago(tmp_path: Path, days: int) -> None:
    made = certificates.make(tmp_path, tenant="acme", force=False, leaf_days=days)
    leaf = load(made, "client")
    age = datetime.now(timezone.utc) - leaf.not_valid_before_utc

    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=days)
    assert timedelta(minutes=5) <= age < timedelta(minutes=6)


def test_two_cas_do_not_vouch_for_each_other(tmp_path: Path) -> None:
    first = certificates.make(tmp_path / "a", tenant="acme", force=False)
    second = certificates.make(tmp_path / "b", tenant="acme", force=False)

    load(first, "client").verify_directly_issued_by(load(first, "ca"))
    with pytest.raises(x509.verification.VerificationError):
        verify(load(first, "client"), load(second, "ca"))


def verify(leaf: x509.Certificate, ca: x509.Certificate) -> None:
    store = x509.verification.Store([ca])
    x509.verification.PolicyBuilder().store(store).build_client_verifier().verify(leaf, [])


@pytest.mark.parametrize("name", ["", "two words", "-a", "a..b", "a/b", "ü", "a" * 64, "[::1]"])
def test_a_wrong_service_name_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="neither a DNS name nor an IP address") as failure:
        certificates.make(tmp_path, service_names=[name], tenant="acme", force=False)

    assert repr(name) in failure.value.message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tenant", ["", "a/b", "a b", "ü", "a" * 129])
def test_a_wrong_tenant_is_named(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ConfigError, match=r"^tenant: is "):
        certificates.make(tmp_path, tenant=tenant, force=False)


def test_a_path_with_odd_characters_is_still_toml(tmp_path: Path) -> None:
    out = tmp_path / 'odd "quotes" \\ and ü 😀'
    made = certificates.make(out, tenant="acme", force=False)
    file = tmp_path / "cachesvc.toml"
    file.write_text(made.toml, "utf-8")

    assert config.load(str(file)).service.tls.key_file == str(out / "service.key")
