"""Remote providers: what is sent, what is believed, and what is never told."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import math
import struct
from typing import TYPE_CHECKING

import pytest

from cachesvc.embed.remote import MAX_DIMENSIONS, Provider, RemoteEmbedder
from cachesvc.errors import ConfigError, EmbedError
from tests.embed.provider import answer, vectors

if TYPE_CHECKING:
    from tests.embed.provider import FakeProvider

KEY = "sk-canary-0123456789"
TEXT = "How do I reset my password, canary question?"


async def test_an_openai_call_is_what_its_reference_says(
    remote: RemoteEmbedder, provider: FakeProvider
) -> None:
    vector = await remote.embed(TEXT, request_id="req-7")
    assert vector == struct.pack("<3f", 0.6, 0.8, 0.0)
    (call,) = provider.received
    assert (call.method, call.target) == ("POST", "/v1/embeddings")
    assert call.body == {"input": TEXT, "encoding_format": "base64", "model": "some-model"}
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.headers["content-type"] == "application/json"
    assert call.headers["x-request-id"] == "req-7"
    assert "api-key" not in call.headers


async def test_dimensions_are_sent_only_when_set(provider: FakeProvider) -> None:
    chosen = RemoteEmbedder(
        Provider.of("openai", base_url=provider.url, model="m", dimensions=3, api_key="")
    )
    assert await chosen.embed(TEXT) is not None
    await chosen.close()
    (call,) = provider.received
    assert call.body["dimensions"] == 3
    assert "authorization" not in call.headers


async def test_azure_gets_its_key_in_api_key_and_nowhere_else(provider: FakeProvider) -> None:
    root = provider.url.removesuffix("/v1")
    azure = RemoteEmbedder(
        Provider.of("azure_openai", base_url=f"{root}/", model="my embed", api_key=KEY)
    )
    assert await azure.embed(TEXT, request_id="req-8") is not None
    await azure.close()
    (call,) = provider.received
    assert call.target == "/openai/deployments/my%20embed/embeddings?api-version=2024-10-21"
    assert call.headers["api-key"] == KEY
    assert call.headers["x-request-id"] == "req-8"
    assert "authorization" not in call.headers
    assert call.body == {"input": TEXT, "encoding_format": "base64"}


@pytest.mark.parametrize("request_id", [None, "", "a\r\nx-evil: 1", "ü", "x" * 257])
async def test_a_request_id_that_is_no_header_value_is_left_out(
    remote: RemoteEmbedder, provider: FakeProvider, request_id: str | None
) -> None:
    assert await remote.embed(TEXT, request_id=request_id) is not None
    assert "x-request-id" not in provider.received[0].headers
    assert "x-evil" not in provider.received[0].headers


async def test_base64_and_numbers_are_the_same_vector(
    remote: RemoteEmbedder, provider: FakeProvider
) -> None:
    packed = struct.pack("<3f", 0.1, -0.2, 0.3)
    provider.reply = vectors(_base64(packed))
    assert await remote.embed(TEXT) == packed
    provider.reply = vectors([0.1, -0.2, 0.3])
    assert await remote.embed(TEXT) == packed


def _base64(packed: bytes) -> str:
    return base64.b64encode(packed).decode()


NOT_A_VECTOR = {
    "not JSON": answer(b"<html>hello</html>"),
    "empty": answer(b""),
    "cut off": answer(b'{"data":[{"embedding":[0.1,'),
    "not UTF-8": answer(b'{"data":[{"embedding":"\xff\xfe"}]}'),
    "another shape": answer({"embeddings": [[0.1, 0.2]]}),
    "a list": answer([0.1, 0.2]),
    "no data": answer({"data": []}),
    "null data": answer({"data": None}),
    "two vectors": vectors([0.1, 0.2], [0.3, 0.4]),
    "no embedding": answer({"data": [{"index": 0}]}),
    "no dimensions": vectors([]),
    "text": vectors("no base64"),
    "base64 of half a number": vectors(_base64(b"\x00\x00\x80\x3f\x00\x00")),
    "base64 of nothing": vectors(""),
    "base64 of NaN": vectors(_base64(struct.pack("<2f", 1.0, math.nan))),
    "base64 of infinity": vectors(_base64(struct.pack("<2f", 1.0, math.inf))),
    "base64 of a zero vector": vectors(_base64(bytes(12))),
    "base64 of too many dimensions": vectors(_base64(b"\x00\x00\x80\x3f" * (MAX_DIMENSIONS + 1))),
    "a null": vectors([0.1, None]),
    "a text among numbers": vectors([0.1, "0.2"]),
    "a bool among numbers": vectors([0.1, True]),
    "NaN": answer(b'{"data":[{"embedding":[0.1,NaN]}]}'),
    "infinity": answer(b'{"data":[{"embedding":[0.1,1e999]}]}'),
    "beyond float32": vectors([0.1, 1e39]),
    "a zero vector": vectors([0.0, 0.0, 0.0]),
    "next to zero": vectors([1e-20, 1e-20]),
    "too many dimensions": vectors([0.1] * (MAX_DIMENSIONS + 1)),
    "far too deep": answer(b'{"data":' + b"[" * 100_000),
    "far too long": answer(b" " * (1024 * 1024 + 1) + b'{"data":[{"embedding":[0.1]}]}'),
    "gzip that is none": answer(b"nothing").replace(
        b"content-type", b"content-encoding: gzip\r\ncontent-type"
    ),
}


@pytest.mark.parametrize("reply", NOT_A_VECTOR.values(), ids=NOT_A_VECTOR.keys())
async def test_a_malformed_200_is_an_error_not_a_vector(
    remote: RemoteEmbedder, provider: FakeProvider, reply: bytes
) -> None:
    provider.reply = reply
    with pytest.raises(EmbedError, match=r"^openai: "):
        await remote.embed(TEXT)


async def test_a_compressed_answer_is_bounded_by_what_it_unpacks_to(
    remote: RemoteEmbedder, provider: FakeProvider
) -> None:
    packed = gzip.compress(b" " * 50_000_000)
    gzipped = b"content-encoding: gzip\r\ncontent-type"
    provider.reply = answer(packed).replace(b"content-type", gzipped)
    with pytest.raises(EmbedError, match="answered over 1048576 bytes"):
        await remote.embed(TEXT)


@pytest.mark.parametrize(
    "status", ["401 Unauthorized", "429 Slow", "500 Oops", "204 No Content", "307 Elsewhere"]
)
async def test_another_status_is_an_error_that_tells_only_the_status(
    remote: RemoteEmbedder, provider: FakeProvider, status: str
) -> None:
    told = json.dumps({"error": f"Incorrect API key provided: {KEY} for {TEXT}"}).encode()
    provider.reply = answer(b"" if status.startswith("204") else told, status)
    with pytest.raises(EmbedError) as caught:
        await remote.embed(TEXT)
    assert caught.value.message == f"openai: answered {status[:3]}"


async def test_a_redirect_is_not_followed_with_the_key(provider: FakeProvider) -> None:
    provider.reply = answer(b"", "307 Elsewhere").replace(
        b"content-type", f"location: {provider.url}/embeddings\r\ncontent-type".encode()
    )
    embedder = RemoteEmbedder(Provider.of("openai", base_url=provider.url, api_key=KEY))
    with pytest.raises(EmbedError, match="answered 307"):
        await embedder.embed(TEXT)
    await embedder.close()
    assert len(provider.received) == 1


async def test_the_environments_proxy_is_not_told_the_key(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    embedder = RemoteEmbedder(Provider.of("openai", base_url=provider.url, api_key=KEY))
    assert await embedder.embed(TEXT) is not None
    await embedder.close()


async def test_a_silent_provider_costs_the_timeout_and_no_more(provider: FakeProvider) -> None:
    provider.open.clear()
    embedder = RemoteEmbedder(
        Provider.of("openai", base_url=provider.url, timeout_seconds=0.2, api_key=KEY)
    )
    with pytest.raises(EmbedError, match=r"^openai: no answer within 0\.2 s$"):
        await asyncio.wait_for(embedder.embed(TEXT), 5)
    await asyncio.wait_for(provider.gone.wait(), 5)
    await embedder.close()


async def test_nobody_listening_is_an_error() -> None:
    embedder = RemoteEmbedder(Provider.of("openai", base_url="http://127.0.0.1:9/v1", api_key=KEY))
    with pytest.raises(EmbedError, match=r"^openai: call failed \(ClientConnectorError\)$"):
        await embedder.warm()
    await embedder.close()


async def test_a_dimension_other_than_the_setting_is_an_error(provider: FakeProvider) -> None:
    embedder = RemoteEmbedder(Provider.of("openai", base_url=provider.url, dimensions=4))
    with pytest.raises(EmbedError, match="answered 3 dimensions; must be 4"):
        await embedder.embed(TEXT)
    await embedder.close()


async def test_a_dimension_other_than_the_first_answer_is_an_error(
    remote: RemoteEmbedder, provider: FakeProvider
) -> None:
    await remote.warm()
    provider.reply = vectors([0.6, 0.8])
    with pytest.raises(EmbedError, match="answered 2 dimensions; must be 3"):
        await remote.embed(TEXT)
    provider.reply = vectors([0, 1, 0])
    assert await remote.embed(TEXT) == struct.pack("<3f", 0, 1, 0)


async def test_a_text_over_the_byte_bound_costs_no_call(provider: FakeProvider) -> None:
    embedder = RemoteEmbedder(Provider.of("openai", base_url=provider.url, max_input_bytes=8))
    assert await embedder.embed("ééééé") is None
    assert await embedder.embed("a\ud800") is None
    assert provider.received == []
    assert await embedder.embed("éééé") is not None
    await embedder.close()


async def test_the_key_and_the_text_are_in_no_repr_error_or_log(
    remote: RemoteEmbedder, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider.reply = answer({"error": KEY}, "401 Unauthorized")
    seen = [repr(remote), str(remote), repr(remote._provider), remote.space]
    for reply in (provider.reply, answer(b"garbage")):
        provider.reply = reply
        with pytest.raises(EmbedError) as caught:
            await remote.embed(TEXT)
        error: BaseException | None = caught.value
        while error is not None:
            seen += [str(error), repr(error)]
            error = error.__cause__
    assert len(provider.received) == 2
    for words in (*seen, caplog.text):
        assert "canary" not in words


def test_a_space_tells_provider_endpoint_model_and_dimensions_apart() -> None:
    def space(name: str = "openai", **more: object) -> str:
        settings = {"base_url": "https://a.example/v1", "model": "m", **more}
        return Provider.of(name, **settings).space  # type: ignore[arg-type]

    assert space() == "openai:https://a.example/v1:m:native"
    assert space(base_url="https://a.example/v1/") == space()
    assert space(api_key=KEY) == space()
    others = [
        space("azure_openai"),
        space(base_url="https://b.example/v1"),
        space(model="n"),
        space(dimensions=256),
    ]
    assert len({space(), *others}) == 5


def test_a_long_space_fits_256_characters_and_stays_its_own() -> None:
    def long(end: str) -> str:
        return Provider.of("openai", base_url=f"https://a.example/{'x' * 300}{end}").space

    assert len(long("1")) == 256
    assert long("1") != long("2")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("embed.base_url", {"base_url": "ftp://a.example"}),
        ("embed.base_url", {"base_url": "https://user:pass@a.example"}),
        ("embed.base_url", {"base_url": "https://a.example/?key=1"}),
        ("embed.api_key", {"api_key": "sk-\n"}),
        ("embed.api_key", {"api_key": "sk-ü"}),
        ("embed.dimensions", {"dimensions": MAX_DIMENSIONS + 1}),
        ("embed.dimensions", {"dimensions": -1}),
    ],
)
def test_a_wrong_setting_is_named(field: str, wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must ") as caught:
        Provider.of("openai", **wrong)
    assert "sk-" not in caught.value.message


def test_azure_needs_a_deployment_and_a_resource() -> None:
    with pytest.raises(ConfigError, match=r"embed\.model"):
        Provider.of("azure_openai", base_url="https://a.example")
    with pytest.raises(ConfigError, match=r"embed\.base_url"):
        Provider.of("azure_openai", model="m")


async def test_after_close_there_is_an_error_and_no_call(
    remote: RemoteEmbedder, provider: FakeProvider
) -> None:
    await remote.close()
    with pytest.raises(EmbedError, match="closed"):
        await remote.embed(TEXT)
    assert provider.received == []
