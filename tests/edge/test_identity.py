"""The tenant comes from one SAN, byte for byte, or from the fingerprint; from nothing else."""

from __future__ import annotations

import ipaddress
import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from cachesvc.errors import Unauthenticated
from cachesvc.service.identity import Caller, Identities
from cachesvc.settings import Identity
from tests.edge.pki import CA, raw_san, uri
from tests.edge.running import App, Running, get, read_until

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from tests.edge.pki import Pair

SAN = "spiffe://corp/gateway-a"
ROWS = (
    Identity(san=f"URI:{SAN}", tenant="acme", roles=("data",)),
    Identity(san="DNS:gw.corp", tenant="globex", roles=("lookup",)),
    Identity(san="URI:spiffe://corp/a%2Fb", tenant="escaped", roles=("data",)),
    Identity(san="DNS:xn--mnchen-3ya.corp", tenant="punycode", roles=("data",)),
    Identity(san="URI:spiffe://corp/a\x00b", tenant="cut", roles=("data",)),
    Identity(san="DNS:münchen.corp", tenant="unicode", roles=("data",)),
)
TABLE = Identities(ROWS, tls=True)

type_of = {"URI": 6, "DNS": 2}


def dns(value: str) -> x509.GeneralName:
    return x509.DNSName(value)


def scope_of(pair: Pair) -> dict[str, Any]:
    return {"type": "http", "extensions": {"tls": {"client_cert_chain": [pair.pem]}}}


def ask(edge: Running, context: ssl.SSLContext | None, *headers: str) -> dict[str, str]:
    with edge.connect(context) as sock:
        sock.sendall(get("/whoami", *headers))
        reply = read_until(sock, b"}").partition(b"\r\n\r\n")
    assert reply[0].startswith((b"HTTP/1.1 200", b"HTTP/1.1 401"))
    told: dict[str, str] = json.loads(reply[2])
    return told


@pytest.mark.parametrize(
    ("sans", "tenant"),
    [
        pytest.param([uri(SAN)], "acme", id="the URI"),
        pytest.param([dns("gw.corp")], "globex", id="the DNS name"),
        pytest.param(
            [uri(SAN), x509.IPAddress(ipaddress.ip_address("::1")), x509.RFC822Name("a@b")],
            "acme",
            id="addresses and e-mail beside it",
        ),
        pytest.param([uri("spiffe://corp/a%2Fb")], "escaped", id="escaped as in the table"),
        pytest.param([dns("xn--mnchen-3ya.corp")], "punycode", id="punycode as in the table"),
        pytest.param([], None, id="none"),
        pytest.param([x509.RFC822Name("gw.corp")], None, id="e-mail only"),
        pytest.param([uri(SAN), uri("spiffe://corp/b")], None, id="two URIs"),
        pytest.param([uri(SAN), uri(SAN)], None, id="the same URI twice"),
        pytest.param([uri(SAN), dns("gw.corp")], None, id="URI and DNS"),
        pytest.param([dns("gw.corp"), dns("b.corp")], None, id="two DNS names"),
        pytest.param([uri("SPIFFE://corp/gateway-a")], None, id="case of the scheme"),
        pytest.param([uri("spiffe://CORP/gateway-a")], None, id="case of the host"),
        pytest.param([dns("GW.corp")], None, id="case of the DNS name"),
        pytest.param([uri("spiffe://corp/a/b")], None, id="not escaped"),
        pytest.param([uri("spiffe://corp/a%2fb")], None, id="escaped in lower case"),
        pytest.param([uri(f"{SAN}/")], None, id="trailing slash"),
        pytest.param([uri(f"{SAN}?")], None, id="empty query"),
        pytest.param([uri(SAN[:-1])], None, id="prefix"),
        pytest.param([uri(f"{SAN}-b")], None, id="longer"),
        pytest.param([dns("gw.corp.")], None, id="trailing dot"),
        pytest.param([dns("*.corp")], None, id="wildcard"),
        pytest.param([dns(SAN)], None, id="the URI as DNS name"),
        pytest.param([uri("gw.corp")], None, id="the DNS name as URI"),
        pytest.param([uri(f"URI:{SAN}")], None, id="with the table's prefix"),
        pytest.param(raw_san((6, SAN.encode() + b"\x00")), None, id="NUL at the end"),
        pytest.param(raw_san((6, b"spiffe://corp/a\x00b")), None, id="NUL, in the table"),
        pytest.param(raw_san((2, "münchen.corp".encode())), None, id="UTF-8, in the table"),
        pytest.param(raw_san((2, b"")), None, id="empty"),
    ],
)
def test_a_certificate_is_the_tenant_of_its_one_san(
    loop: str, ca: CA, sans: Sequence[x509.GeneralName], tenant: str | None
) -> None:
    # The CN is that of a row, and counts for nothing.
    context = ca.client_context(ca.issue(sans, cn="gw.corp"))
    with Running(App(TABLE), loop, ca.server_tls()) as edge:
        told = ask(edge, context)

    assert told.get("tenant") == tenant
    assert tenant or told["error"].startswith("client certificate: ")


@pytest.mark.parametrize(
    "sans",
    [
        pytest.param(raw_san((2, "münchen.corp".encode("latin-1"))), id="Latin-1"),
        pytest.param(raw_san((6, SAN.encode()), (6, b"\xff")), id="one unreadable of two"),
    ],
)
def test_a_san_that_is_no_text_is_refused_with_the_connection(
    loop: str, ca: CA, sans: x509.UnrecognizedExtension
) -> None:
    """Python itself cannot read it: the handshake fails, and asyncio logs that."""
    app = App(TABLE)
    pair = ca.issue(sans)
    with Running(app, loop, ca.server_tls()) as edge:
        with pytest.raises((AssertionError, OSError)):
            ask(edge, ca.client_context(pair))
        assert [c["message"] for c in edge.complaints] == ["SSL handshake failed"]
        edge.complaints.clear()

    assert app.calls == []
    with pytest.raises(Unauthenticated):
        TABLE.identify(scope_of(pair))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["URI", "DNS"]),
    value=st.one_of(
        st.binary(max_size=60),
        st.sampled_from([row.san.partition(":")[2].encode() for row in ROWS]),
        st.integers(0, len(SAN) - 1).map(
            lambda i: (SAN[:i] + SAN[i].swapcase() + SAN[i + 1 :]).encode()
        ),
        st.integers(0, len(SAN) - 1).map(
            lambda i: (SAN[:i] + f"%{ord(SAN[i]):02X}" + SAN[i + 1 :]).encode()
        ),
        st.tuples(st.integers(0, len(SAN)), st.binary(min_size=1, max_size=2)).map(
            lambda at: SAN[: at[0]].encode() + at[1] + SAN[at[0] :].encode()
        ),
    ),
)
def test_only_the_same_bytes_of_the_same_kind_pass(
    tmp_path_factory: pytest.TempPathFactory, kind: str, value: bytes
) -> None:
    pair = CA(tmp_path_factory.getbasetemp()).issue(raw_san((type_of[kind], value)))
    equal = {
        row.tenant: row.san.encode() for row in ROWS if row.san.isascii() and "\x00" not in row.san
    }
    try:
        tenant: str | None = TABLE.identify(scope_of(pair)).tenant
    except Unauthenticated:
        tenant = None

    sent = f"{kind}:".encode() + value
    assert tenant == next((name for name, san in equal.items() if san == sent), None)


def test_a_fingerprint_names_a_certificate_whatever_its_sans(loop: str, ca: CA) -> None:
    several = ca.issue([uri(SAN), dns("gw.corp")])
    row = Identity(sha256=several.sha256, tenant="pinned", roles=("admin",))
    with Running(App(Identities((*ROWS, row), tls=True)), loop, ca.server_tls()) as edge:
        told = ask(edge, ca.client_context(several))

    assert told == {"tenant": "pinned", "name": f"sha256:{several.sha256}"}


def test_a_fingerprint_goes_before_a_san(ca: CA) -> None:
    pair = ca.issue([uri(SAN)])
    row = Identity(sha256=pair.sha256, tenant="pinned", roles=("lookup",))

    caller = Identities((*ROWS, row), tls=True).identify(scope_of(pair))

    assert caller.tenant == "pinned"
    assert not caller.may("put")


def test_a_kept_connection_does_not_outlive_its_certificate(loop: str, ca: CA) -> None:
    pair = ca.issue([uri(SAN)], end=timedelta(seconds=2))
    deadline = time.monotonic() + 10
    seen: list[bytes] = []
    with (
        Running(App(TABLE), loop, ca.server_tls()) as edge,
        edge.connect(ca.client_context(pair)) as sock,
    ):
        while time.monotonic() < deadline and b"HTTP/1.1 401" not in seen:
            sock.sendall(get("/whoami"))
            seen.append(read_until(sock, b"}")[:12])
            time.sleep(0.05)

    assert seen[0] == b"HTTP/1.1 200"
    assert seen[-1] == b"HTTP/1.1 401"


FORGED = (
    "X-Client-Cert: x",
    "X-SSL-Client-Cert: x",
    "X-Forwarded-Client-Cert: By=x;URI=spiffe://corp/gateway-a",
    "SSL-Client-Verify: SUCCESS",
    "X-SSL-Client-S-DN: CN=gw.corp",
    "Client-Cert: :AAAA:",
    "X-Tenant: acme",
    "Authorization: Bearer acme",
)


def test_headers_change_nothing_about_a_certificate(loop: str, ca: CA) -> None:
    with Running(App(TABLE), loop, ca.server_tls()) as edge:
        known = ask(edge, ca.client_context(ca.issue([dns("gw.corp")])), *FORGED)
        unknown = ask(edge, ca.client_context(ca.issue([dns("b.corp")])), *FORGED)

    assert known["tenant"] == "globex"
    assert "error" in unknown


def test_with_tls_a_plain_connection_is_nobody_whatever_it_says(loop: str) -> None:
    with Running(App(TABLE), loop) as edge:
        assert ask(edge, None, *FORGED) == {"error": "client certificate: is required"}


def test_without_tls_everybody_is_the_default_tenant(loop: str) -> None:
    with Running(App(Identities((), tls=False)), loop) as edge:
        assert ask(edge, None, *FORGED) == {"tenant": "default", "name": "local"}


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"extensions": None},
        {"extensions": {}},
        {"extensions": {"tls": {}}},
        {"extensions": {"tls": {"client_cert_chain": []}}},
        {"extensions": {"tls": {"client_cert_chain": ["nonsense"]}}},
    ],
)
def test_a_missing_or_unreadable_certificate_is_nobody(scope: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        TABLE.identify(scope)


def test_a_certificate_is_parsed_once_per_connection(ca: CA) -> None:
    scope = scope_of(ca.issue([uri(SAN)]))
    TABLE.identify(scope)
    scope["extensions"]["tls"]["client_cert_chain"] = ["nonsense"]

    assert TABLE.identify(scope).tenant == "acme"


@pytest.mark.parametrize(
    ("roles", "may"),
    [
        ({"lookup"}, {"lookup"}),
        ({"put", "feedback"}, {"put", "feedback"}),
        ({"data"}, {"lookup", "put", "feedback", "data"}),
        ({"admin"}, {"lookup", "put", "feedback", "data", "admin"}),
    ],
)
def test_roles_grant_what_they_say(roles: set[str], may: set[str]) -> None:
    caller = Caller("acme", frozenset(roles), "someone")

    assert {r for r in ("lookup", "put", "feedback", "data", "admin") if caller.may(r)} == may
