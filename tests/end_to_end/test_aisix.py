"""The wire of an AISIX data plane, over mTLS, against the installed product."""

from __future__ import annotations

import json
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.end_to_end.stack import COMMAND, Up, clean_environment
from tests.end_to_end.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_SECONDS = 5.0  # the data plane's own, on both calls

# Key order, spacing and an enum that no schema of ours knows: all of it must come back.
CHAT_RESPONSE = (
    b'{"id":"chatcmpl-1","model":"gpt-4o",  '
    b'"message":{"role":"assistant","content":"Paris \\u00e9"},'
    b'"finish_reason":{"other":"eos"},"usage":{"total_tokens":18,"prompt_tokens":7,'
    b'"completion_tokens":11,"cached_prompt_tokens":0,"reasoning_tokens":0,'
    b'"cache_creation_tokens":0,"cache_read_tokens":0}}'
)


def numbers(text: str) -> list[float]:
    """A vector as a data plane prints one: f32 values, widened."""
    import struct

    values = [((hash_byte % 97) - 48) / 97 for hash_byte in text.encode().ljust(64, b"x")]
    return list(struct.unpack("<64f", struct.pack("<64f", *values)))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pki") / "certs"
    made = subprocess.run(
        [COMMAND, "certs", "--out", str(out), "--tenant", "acme"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=clean_environment(),
    )
    assert "[[identity]]" in made.stdout
    return out


@pytest.fixture(scope="module")
def up(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    config = folder / "cachesvc.toml"
    config.write_text(
        f"""
        [service]
        admin_listen = "127.0.0.1:0"
        [service.tls]
        cert_file = "{certificates}/service.pem"
        key_file = "{certificates}/service.key"
        client_ca_file = "{certificates}/ca.pem"
        [proxy.tls]
        cert_file = "{certificates}/client.pem"
        key_file = "{certificates}/client.key"
        ca_file = "{certificates}/ca.pem"
        [[identity]]
        san = "URI:spiffe://cachesvc/acme/client"
        tenant = "default"
        roles = ["data", "admin"]
        [[identity]]
        san = "URI:spiffe://cachesvc/acme/admin"
        tenant = "globex"
        roles = ["admin"]
        """,
        "utf-8",
    )
    with (
        ScriptedUpstream() as upstream,
        Up(folder / "data", "--config", str(config), "--upstream", upstream.url) as running,
    ):
        yield running


def client(up: Up, certificates: Path, name: str) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return httpx.Client(
        base_url=up.service, verify=context, timeout=TIMEOUT_SECONDS, trust_env=False
    )


@pytest.fixture
def data_plane(up: Up, certificates: Path) -> Iterator[httpx.Client]:
    with client(up, certificates, "client") as made:
        saved = made.put("/policies/semantic", json={"sharing": "shared", "tiers": ["semantic"]})
        assert saved.status_code in (200, 201)
        yield made


def lookup(data_plane: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = data_plane.post("/dp/cache/lookup", json={"policy_id": "semantic", **fields})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_a_put_answer_comes_back_byte_for_byte(data_plane: httpx.Client) -> None:
    vector = numbers("capital of France?")
    put = json.dumps(
        {"policy_id": "semantic", "prompt_text": "capital of France?", "embedding": vector}
    )
    body = put[:-1].encode() + b',"response":' + CHAT_RESPONSE
    body += b',"prompt_tokens":7,"completion_tokens":11,"ttl_seconds":600}'
    stored = data_plane.post(
        "/dp/cache/put", content=body, headers={"content-type": "application/json"}
    )
    assert stored.status_code == 200
    assert set(stored.json()) >= {"entry_id", "expires_at"}
    asked = {"policy_id": "semantic", "embedding": vector, "threshold": 0.8500000238418579}
    reply = data_plane.post("/dp/cache/lookup", json=asked)
    assert b'"response":' + CHAT_RESPONSE in reply.content
    found = reply.json()
    assert found["hit"] is True
    assert (found["prompt_tokens"], found["completion_tokens"]) == (7, 11)
    assert found["similarity"] >= 0.999


def test_a_miss_is_a_200_with_the_best_similarity(data_plane: httpx.Client) -> None:
    missed = lookup(data_plane, embedding=[-value for value in numbers("capital of France?")])
    assert missed["hit"] is False
    assert isinstance(missed["similarity"], float)
    assert "response" not in missed


def test_omitted_tokens_and_ttl_take_their_defaults(data_plane: httpx.Client) -> None:
    vector = numbers("0123456789" * 6)
    put = {"policy_id": "semantic", "prompt_text": "digits", "embedding": vector}
    reply = data_plane.post("/dp/cache/put", json=put | {"response": json.loads(CHAT_RESPONSE)})
    assert reply.status_code == 200
    found = lookup(data_plane, embedding=vector)
    assert (found["hit"], found["prompt_tokens"], found["completion_tokens"]) == (True, 0, 0)


@pytest.mark.parametrize("policy", ["no-such-policy", "theirs"])
@pytest.mark.parametrize("call", ["lookup", "put"])
def test_an_unknown_policy_and_another_tenants_are_the_same_404(
    up: Up, certificates: Path, data_plane: httpx.Client, policy: str, call: str
) -> None:
    with client(up, certificates, "admin") as globex:
        assert globex.put("/policies/theirs", json={"sharing": "shared"}).status_code in (200, 201)
    body = {"policy_id": policy, "embedding": numbers("x"), "prompt_text": "x", "response": {}}
    reply = data_plane.post(f"/dp/cache/{call}", json=body)
    assert reply.status_code == 404
    expected = b'{"error":{"code":"NOT_FOUND","message":"cache_policy not found"}}'
    assert reply.content == expected


def test_without_a_certificate_nobody_is_let_in(up: Up, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with (
        httpx.Client(verify=context, trust_env=False) as nobody,
        pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)),
    ):
        nobody.post(f"{up.service}/dp/cache/lookup", json={"policy_id": "semantic"})


def test_the_proxy_speaks_mtls_to_the_service(up: Up, certificates: Path) -> None:
    import time

    body = {"model": "m", "messages": [{"role": "user", "content": "Over mTLS, too?"}]}
    statuses = []
    for _ in range(50):
        reply = httpx.post(f"{up.proxy}/v1/chat/completions", json=body, trust_env=False)
        statuses.append(reply.headers.get("x-ai-cache-status"))
        if statuses[-1] == "HIT":
            break
        time.sleep(0.05)
    assert statuses[0] == "MISS"
    assert statuses[-1] == "HIT"


def test_health_and_metrics_are_on_the_plain_admin_listener_alone(
    up: Up, certificates: Path
) -> None:
    admin = up.urls["admin"]
    assert httpx.get(f"{admin}/livez", trust_env=False).status_code == 200
    assert "cachesvc_lookups_total" in httpx.get(f"{admin}/metrics", trust_env=False).text
    assert httpx.post(f"{admin}/cache/lookup", json={}, trust_env=False).status_code == 404
    with client(up, certificates, "admin") as mutual:
        assert mutual.get("/metrics").status_code == 404
