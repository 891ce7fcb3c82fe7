"""Settings: three sources in order, and one line for what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cachesvc import config
from cachesvc.errors import ConfigError
from cachesvc.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("CACHESVC_")]:
        monkeypatch.delenv(name)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "cachesvc.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_nothing_set_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = config.load(None)
    assert settings.data_path == tmp_path / "cachesvc"
    assert settings.lookup_budget_ms() == 50
    assert settings.upstream_name == "https://api.openai.com:443"


def test_flags_go_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, '[proxy]\nlisten = "127.0.0.1:1"\nupstream = "http://file"\n')
    monkeypatch.setenv("CACHESVC_PROXY_LISTEN", "127.0.0.1:2")
    assert config.load(path).proxy.listen == "127.0.0.1:2"
    assert config.load(path).proxy.upstream == "http://file"
    assert config.load(path, {"proxy.listen": "127.0.0.1:3"}).proxy.listen == "127.0.0.1:3"
    assert config.load(path, {"proxy.listen": None}).proxy.listen == "127.0.0.1:2"
    monkeypatch.setenv("CACHESVC_CONFIG", path)
    assert config.load(None).proxy.upstream == "http://file"


def test_every_kind_of_field_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CACHESVC_PROXY_LOOKUP_BUDGET_MS", "75")
    monkeypatch.setenv("CACHESVC_PROXY_KEY_HEADERS", "x-region, x-tier")
    monkeypatch.setenv("CACHESVC_PROXY_FORCED", '{"model":"gpt-4o"}')
    monkeypatch.setenv("CACHESVC_SERVICE_INSECURE", "true")
    monkeypatch.setenv("CACHESVC_PROXY_HEADERS_STATUS", "X-Cache")
    monkeypatch.setenv("CACHESVC_SERVICE_HOST", "10.0.0.1")  # Kubernetes sets this one
    settings = config.load(None)
    assert settings.lookup_budget_ms() == 75
    assert settings.proxy.key_headers == ("x-region", "x-tier")
    assert settings.proxy.forced == {"model": "gpt-4o"}
    assert settings.service.insecure is True
    assert settings.proxy.headers.status == "X-Cache"


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2-hunter2-hunter2\n", "utf-8")
    settings = config.load(None, {"proxy.scope_secret_file": str(secret)})
    assert settings.proxy.scope_secret == "hunter2-hunter2-hunter2"
    assert "hunter2" not in repr(settings)


def test_a_database_may_have_several_hosts(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("postgresql://u:hunter2@[::1]:1,[::2]:2/d\n", "utf-8")
    url = "postgresql://u:hunter2@a,b/d?target_session_attrs=read-write"
    flags = {"service.database_url": url, "service.read_database_url_file": str(secret)}
    service = config.load(None, flags).service
    assert service.database_url == url
    assert service.read_database_url == "postgresql://u:hunter2@[::1]:1,[::2]:2/d"
    assert "hunter2" not in repr(service)


@pytest.mark.parametrize("field", ["database_url", "listen_url"])
@pytest.mark.parametrize("url", ["postgresql://a,b/d", "postgresql:///d?host=a,b&port=1"])
def test_of_several_hosts_the_primary_must_be_asked_for(field: str, url: str) -> None:
    with pytest.raises(ConfigError, match=f"service.{field}: .*target_session_attrs=read-write"):
        config.load(None, {f"service.{field}": url})


def test_a_secret_file_of_a_higher_source_goes_before_a_secret_of_a_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, '[proxy]\nscope_secret = "the secret of the file"\n')
    secret = tmp_path / "secret"
    secret.write_text("the secret of the environment", "utf-8")
    monkeypatch.setenv("CACHESVC_PROXY_SCOPE_SECRET_FILE", str(secret))
    assert config.load(path).proxy.scope_secret == "the secret of the environment"
    monkeypatch.setenv("CACHESVC_PROXY_SCOPE_SECRET", "both are set in one place")
    with pytest.raises(ConfigError, match=r"proxy.scope_secret_file: is set together"):
        config.load(path)


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("\n", "utf-8")
    with pytest.raises(ConfigError, match=r"proxy.scope_secret_file: .* is empty"):
        config.load(None, {"proxy.scope_secret_file": str(secret)})


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"proxy.lookup_budget_ms": 0}, "proxy.lookup_budget_ms: is 0; must be 1 to 60,000"),
        ({"proxy.lookup_budget_ms": "soon"}, "proxy.lookup_budget_ms: Expected"),
        ({"proxy.upstream": "https://h/v1"}, "write 'https://h'"),
        ({"proxy.upstream": "https://h/api/v1/"}, "write 'https://h/api'"),
        ({"proxy.upstream": "ftp://h"}, "proxy.upstream: is 'ftp://h'"),
        ({"proxy.upstream": "https://u:p@h"}, "proxy.upstream: must have no user"),
        ({"proxy.upstream": "http://127.0.0.1:8701"}, "which is the proxy itself"),
        ({"proxy.listen": "8701"}, "proxy.listen: is '8701'; must be HOST:PORT"),
        ({"proxy.listen": "127.0.0.1:99999"}, "port from 0 to 65535"),
        ({"proxy.scope_secret": "short"}, "proxy.scope_secret: is too short"),
        ({"proxy.headers.status": "a b"}, "proxy.headers.status: 'a b' is not a header name"),
        ({"proxy.upstraem": "x"}, "upstraem"),
        ({"service.listen": "0.0.0.0:1"}, "service.listen: is '0.0.0.0:1'; without [service.tls]"),
        ({"service.listen": "127.0.0.1.evil.com:1"}, "must be loopback"),
        ({"service.tls.cert_file": "a"}, "service.tls.key_file: is missing"),
        ({"service.database_url": "mysql://x"}, "service.database_url: must start with"),
        ({"service.read_database_url": "mysql://x"}, "service.read_database_url: must start with"),
        ({"service.read_lag_seconds": 0.1}, "service.read_lag_seconds: is 0.1; must be 0.5 to"),
        (
            {"service.pooler": "session"},
            "service.pooler: is 'session'; must be auto or transaction",
        ),
        ({"embed.provider": "cohere"}, "embed.provider: is 'cohere'; must be local, openai"),
        ({"embed.provider": "azure_openai"}, "embed.base_url: is required"),
        ({"embed.dimensions": 5000, "embed.provider": "openai"}, "must be 0 to 3,984"),
        ({"identity": [{"tenant": "a", "roles": ["data"]}]}, "identity[0]: exactly one of san"),
        ({"identity": [{"tenant": "a", "roles": ["root"], "san": "DNS:a"}]}, "identity[0].roles"),
        ({"identity": [{"tenant": "a", "roles": ["data"], "san": "a"}]}, "must start with URI:"),
        ({"identity": [{"tenant": "", "roles": ["data"], "san": "DNS:a"}]}, "identity[0].tenant"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.load(None, flags)
    assert told in refusal.value.message
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[proxy", "is not TOML"),
        ("[proxi]\nx = 1", "proxi"),
        ("proxy = 3", "proxy"),
        ('[proxy]\nscope_secret_file = "/nowhere"', "proxy.scope_secret_file: /nowhere"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.load(written(tmp_path, text))
    assert told in refusal.value.message
    assert "\n" not in refusal.value.message


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load("/nowhere.toml")


def test_one_setting_is_replaced_at_any_depth() -> None:
    settings = config.replace(Settings(), "proxy.upstream", value="http://x")
    assert settings.proxy.upstream == "http://x"
    assert config.replace(settings, "data_dir", value="/d").data_dir == "/d"


TABLES = """
[embed]
provider = "none"

[embed.chinese]
provider = "openai"
base_url = "http://127.0.0.1:1/v1"
model = "bge"
dimensions = 1024

[embed.on-site]
"""


def test_embedders_of_policies_have_tables_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "key"
    secret.write_text("from a file\n")
    monkeypatch.setenv("CACHESVC_EMBED_CHINESE_API_KEY_FILE", str(secret))
    monkeypatch.setenv("CACHESVC_EMBED_CHINESE_MODEL", "bge-m3")
    monkeypatch.setenv("CACHESVC_EMBED_ON_SITE_PROVIDER", "openai")
    monkeypatch.setenv("CACHESVC_EMBED_NEW_ONE_BASE_URL", "http://new")
    monkeypatch.setenv("CACHESVC_EMBED_NEW_ONE_PROVIDER", "openai")
    monkeypatch.setenv("CACHESVC_EMBED_SERVICE_PORT", "tcp://10.0.0.1")
    settings = config.load(written(tmp_path, TABLES))
    assert settings.embed.provider == "none"
    chinese = settings.embed_table("chinese")
    assert chinese is not None
    assert (chinese.api_key, chinese.model, chinese.dimensions) == ("from a file", "bge-m3", 1024)
    assert {name: t.provider for name, t in settings.embed_tables.items()} == {
        "chinese": "openai",
        "on-site": "openai",
        "new_one": "openai",
    }
    assert (settings.lookup_budget_ms(), settings.lookup_budget_ms("chinese")) == (50, 1000)
    assert settings.embed_table("none such") is None
    assert "from a file" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[embed.a]\nprovider = "cohere"', "embed.a.provider: is 'cohere'; must be local"),
        ("[embed.a]\ntimeout_ms = 0", "embed.a.timeout_ms: is 0; must be 1 to"),
        ("[embed.a]\nmodle = 1", "embed.a: Object contains unknown field modle"),
        ("[embed.a-b]\n[embed.a_b]", "embed.a_b: has the environment variables of embed.a-b"),
        ('[embed.a]\ntimeout_ms = "1"', "embed.a.timeout_ms: Expected int, got str"),
        ("[embed.A]", "embed.A: must match"),
        ('[embed.a]\napi_key = "x"\napi_key_file = "y"', "embed.a.api_key_file: is set together"),
        ("[embed_tables.a]", "embed_tables: is no setting"),
        ("[embed.model]", "embed.model: must match"),
    ],
)
def test_a_wrong_table_is_one_line_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.load(written(tmp_path, text))
    assert told in refusal.value.message
    assert "\n" not in refusal.value.message


def test_a_wrong_variable_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHESVC_PROXY_CREDENTIAL_PROOF_SECONDS", "soon")
    with pytest.raises(ConfigError) as refusal:
        config.load(None)
    said = "CACHESVC_PROXY_CREDENTIAL_PROOF_SECONDS: is 'soon'; Expected int, got str"
    assert refusal.value.message == said
