"""The settings: frozen structs, one per table of the TOML file.

Each field says what it does and when to change it; `config.py` reads them, `config_checks.py` says
which values are right. `repr` hides secrets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

LOCAL_BUDGET_MS = 50
REMOTE_BUDGET_MS = 1000
_SECRETS = frozenset({"scope_secret", "api_key", "database_url", "listen_url", "read_database_url"})


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of settings. `repr` hides secrets."""

    def __repr__(self) -> str:
        shown = (
            f"{name}=***" if name in _SECRETS else f"{name}={getattr(self, name)!r}"
            for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class ServiceTLS(Section, frozen=True):
    """Set all three and the service requires client certificates."""

    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""

    @property
    def on(self) -> bool:
        return bool(self.cert_file)


class Service(Section, frozen=True):
    # Where /cache/* and administration answer. Loopback only without TLS, unless `insecure`.
    listen: str = "127.0.0.1:8700"
    # With TLS: the plain listener of /livez, /readyz, /metrics, /openapi.json.
    # Defaults to 127.0.0.1:8702.
    admin_listen: str = ""
    # postgresql://…; empty: the embedded server in data_dir.
    database_url: str = ""
    database_url_file: str = ""
    # Connections to each database for lookups and puts, at least 2. Raise it when those wait.
    # The primary has up to 5 more: 3 for sweeps, purges and statistics, and 2 for notifications.
    database_pool_size: int = 8
    # auto | transaction: what stands before the database. PgBouncer in transaction mode shows by
    # itself, unless its ignore_startup_parameters hides it.
    pooler: str = "auto"
    # Streaming replicas that answer lookups, one or several hosts, while they are at most so far
    # behind: from 0.5 s on.
    read_database_url: str = ""
    read_database_url_file: str = ""
    read_lag_seconds: float = 1.0
    # Where notifications come from, when `database_url` leads through a pooler that keeps them.
    # Defaults to `database_url`.
    listen_url: str = ""
    listen_url_file: str = ""
    # Answers kept in memory, those asked for most, and for how long.
    # 0: every hit asks the database.
    hot_bytes: int = 64 * 1024 * 1024
    hot_ttl_seconds: float = 5.0
    # What each tenant may hold in all, beside the limits of its policies. 0: no limit.
    tenant_max_entries: int = 0
    tenant_max_bytes: int = 0
    # Longest a statement may run. Callers have deadlines of their own, so keep it short.
    statement_timeout_ms: int = 1000
    # Largest request body.
    max_request_bytes: int = 16 * 1024 * 1024
    # Above it a connection is answered 503 and closed.
    max_connections: int = 10_000
    # A request body of which nothing comes for so long is refused with 408.
    body_idle_seconds: float = 30.0
    # Let a service without TLS listen beyond loopback. Whoever reaches it owns the cache.
    insecure: bool = False
    # Label metrics with tenants under TLS, too.
    metrics_tenants: bool = False
    tls: ServiceTLS = ServiceTLS()


class ProxyTLS(Section, frozen=True):
    """What the proxy presents to the service, and the CA it trusts there."""

    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""

    @property
    def on(self) -> bool:
        return bool(self.cert_file)


class ProxyHeaders(Section, frozen=True):
    """Names of the headers on judged replies. A policy's `header_names = "aisix"` replaces them."""

    status: str = "X-AI-Cache-Status"
    tier: str = "X-AI-Cache-Tier"
    similarity: str = "X-AI-Cache-Similarity"
    age: str = "X-AI-Cache-Age"
    entry_id: str = "X-AI-Cache-Entry-Id"


class Proxy(Section, frozen=True):
    # Where applications call.
    listen: str = "127.0.0.1:8701"
    # The request's path is appended to it.
    upstream: str = "https://api.openai.com"
    # The upstream's name in keys: set it when one upstream has several addresses.
    # Defaults to its scheme, host, port and path.
    upstream_name: str = ""
    service_url: str = "http://127.0.0.1:8700"
    # Ceiling on what the cache may add to a request, embedding included.
    # Defaults to 50; 1000 when the embedding provider is remote.
    lookup_budget_ms: int | None = None
    # Longest a put may take, after the caller has its answer.
    put_timeout_ms: int = 5000
    # How often the policy list is read again.
    policy_poll_seconds: float = 1.0
    # Keys the scopes: the same in every proxy that shares a cache.
    scope_secret: str = ""
    scope_secret_file: str = ""
    # How long an upstream's 2xx proves a credential under a policy that shares. 0: off.
    credential_proof_seconds: int = 3600
    # Further request headers that shape answers.
    key_headers: tuple[str, ...] = ()
    # Body fields which the upstream forces whatever the caller says: they stand in the key instead
    # of the caller's. The request itself is relayed as it came.
    forced: dict[str, Any] = {}
    # Longest wait for a connection to the upstream, and between two pieces of its answer.
    upstream_connect_seconds: float = 10.0
    upstream_idle_seconds: float = 600.0
    # Request bodies above this are relayed unjudged. Judging takes some 25 times the memory of a
    # body, of two at a time.
    max_request_bytes: int = 4 * 1024 * 1024
    # Above it a connection is answered 503 and closed.
    max_connections: int = 10_000
    tls: ProxyTLS = ProxyTLS()
    headers: ProxyHeaders = ProxyHeaders()


class Embed(Section, frozen=True):
    # local | openai | azure_openai | none
    provider: str = "local"
    base_url: str = ""
    model: str = ""
    api_key: str = ""
    api_key_file: str = ""
    # azure_openai only.
    api_version: str = "2024-10-21"
    # 0: the model's own.
    dimensions: int = 0
    # Longest a remote call may take.
    timeout_ms: int = 5000
    # Remote models: a longer text has no semantic tier. A token is at least one byte, so 8191 bytes
    # never exceed 8191 tokens.
    max_input_bytes: int = 8191


class Identity(Section, frozen=True):
    """A client certificate, by its one SAN or by its SHA-256 fingerprint, and what it may do."""

    tenant: str
    roles: tuple[str, ...]
    san: str = ""
    sha256: str = ""


class TenantLimits(Section, frozen=True):
    """What one tenant may hold, in the place of `service.tenant_max_…`. 0: no limit."""

    name: str
    max_entries: int = 0
    max_bytes: int = 0


class Settings(Section, frozen=True):
    # Holds Postgres, the built model and the scope secret.
    # Defaults to $XDG_DATA_HOME/cachesvc, else ~/.local/share/cachesvc.
    data_dir: str = ""
    service: Service = Service()
    proxy: Proxy = Proxy()
    embed: Embed = Embed()
    # `[embed.<name>]`: other embedders, for the policies whose `embed` names them.
    embed_tables: dict[str, Embed] = {}
    identity: tuple[Identity, ...] = ()
    tenant: tuple[TenantLimits, ...] = ()

    def tenant_limits(self, name: str) -> TenantLimits:
        """What this tenant may hold."""
        for limits in self.tenant:
            if limits.name == name:
                return limits
        service = self.service
        return TenantLimits(
            name=name, max_entries=service.tenant_max_entries, max_bytes=service.tenant_max_bytes
        )

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)

    def embed_table(self, name: str) -> Embed | None:
        """The table of this name, `[embed]` itself for "", None where there is none."""
        return self.embed_tables.get(name) if name else self.embed

    def lookup_budget_ms(self, table: str = "") -> int:
        """What the cache may add to a request whose policy names this table of `[embed]`."""
        if self.proxy.lookup_budget_ms is not None:
            return self.proxy.lookup_budget_ms
        embed = self.embed_table(table) or self.embed
        remote = embed.provider in ("openai", "azure_openai")
        return REMOTE_BUDGET_MS if remote else LOCAL_BUDGET_MS

    @property
    def upstream_name(self) -> str:
        """Scheme, host, port and path of the upstream, unless it was given a name."""
        if self.proxy.upstream_name:
            return self.proxy.upstream_name
        return name_of(self.proxy.upstream)


def name_of(upstream: str) -> str:
    """Scheme, host, port and path of a URL, as they stand in keys."""
    url = urlsplit(upstream)
    port = url.port or (443 if url.scheme == "https" else 80)
    return f"{url.scheme}://{url.hostname}:{port}{url.path.rstrip('/')}"
