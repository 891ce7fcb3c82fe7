"""A wrong TLS file stops the start with the field that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization

from cachesvc.edge.tls import server_context
from cachesvc.errors import ConfigError
from tests.edge.pki import SERVER, uri

if TYPE_CHECKING:
    from pathlib import Path

    from tests.edge.pki import CA


@pytest.fixture
def files(ca: CA) -> dict[str, str]:
    pair = ca.issue([uri("spiffe://a/b")], usage=SERVER)
    return {
        "cert_file": pair.cert_file,
        "key_file": pair.key_file,
        "client_ca_file": ca.pair.cert_file,
    }


def test_right_files_make_a_context(files: dict[str, str]) -> None:
    assert server_context(**files).num_tickets == 0


@pytest.mark.parametrize("field", ["cert_file", "key_file", "client_ca_file"])
def test_a_missing_file_is_named(files: dict[str, str], field: str) -> None:
    with pytest.raises(ConfigError) as failure:
        server_context(**{**files, field: "missing.pem"})

    said = failure.value.message
    assert said == f"service.tls.{field}: missing.pem cannot be read: No such file or directory"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00\xff" * 100])
@pytest.mark.parametrize("field", ["cert_file", "key_file", "client_ca_file"])
def test_a_file_of_nonsense_is_named(
    files: dict[str, str], field: str, content: bytes, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^service\.tls\.{field}: {wrong} holds no "):
        server_context(**{**files, field: str(wrong)})


def test_a_directory_is_named(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"service\.tls\.key_file: .* Is a directory"):
        server_context(**{**files, "key_file": str(tmp_path)})


def test_a_key_of_another_certificate_is_named(files: dict[str, str], ca: CA) -> None:
    other = ca.issue().key_file
    with pytest.raises(ConfigError, match=r"service\.tls\.key_file: .* does not belong"):
        server_context(**{**files, "key_file": other})


def test_swapped_files_are_named(files: dict[str, str]) -> None:
    swapped = {"cert_file": files["key_file"], "key_file": files["cert_file"]}
    with pytest.raises(ConfigError, match=r"service\.tls\.cert_file: .* holds no certificate"):
        server_context(**{**files, **swapped})


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(
    files: dict[str, str], ca: CA, tmp_path: Path
) -> None:
    pair = ca.issue(usage=SERVER)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        pair.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=r"service\.tls\.key_file: .* without a passphrase"):
        server_context(pair.cert_file, str(locked), files["client_ca_file"])


def test_no_message_shows_what_is_in_a_file(files: dict[str, str], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.key"
    wrong.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigError) as failure:
        server_context(**{**files, "key_file": str(wrong)})

    assert "c2VjcmV0" not in failure.value.message
    assert "\n" not in failure.value.message
