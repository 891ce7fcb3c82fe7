"""What the values of settings must be. Each failure is one line: field, fault, allowed range."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cachesvc.errors import ConfigError

if TYPE_CHECKING:
    from cachesvc.settings import Embed, Proxy, Service, Settings

ROLES = frozenset({"lookup", "put", "feedback", "data", "admin"})
_TENANT = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_PRIMARY = re.compile(r"[?&]target_session_attrs=(read-write|primary)(&|$)")


def check(settings: Settings) -> None:
    """Raises ConfigError for the first setting that is wrong."""
    _check_service(settings.service)
    _check_proxy(settings.proxy)
    _check_embed("embed", settings.embed)
    for name, table in settings.embed_tables.items():
        _check_embed(f"embed.{name}", table)
    _check_identities(settings)
    _check_tenants(settings)
    _all_or_none("service.tls", settings.service.tls, ("cert_file", "key_file", "client_ca_file"))
    _all_or_none("proxy.tls", settings.proxy.tls, ("cert_file", "key_file", "ca_file"))


def split_listen(field: str, value: str) -> tuple[str, int]:
    """("127.0.0.1", 8700) of "127.0.0.1:8700".

    IPv6 stands in brackets; port 0 lets the system choose.
    """
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{field}: is {value!r}; must be HOST:PORT with a port from 0 to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """True for `localhost` and for the loopback addresses, and for nothing else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_service(service: Service) -> None:
    host, _ = split_listen("service.listen", service.listen)
    if service.admin_listen:
        split_listen("service.admin_listen", service.admin_listen)
    if not service.tls.on and not service.insecure and not is_loopback(host):
        raise ConfigError(
            f"service.listen: is {service.listen!r}; without [service.tls] it must be loopback"
            " (or start with --insecure)"
        )
    for name in ("database_url", "listen_url", "read_database_url"):
        url = getattr(service, name)
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise ConfigError(f"service.{name}: must start with postgresql://")
        if name != "read_database_url" and _names_several_hosts(url) and not _PRIMARY.search(url):
            raise ConfigError(
                f"service.{name}: names several hosts; add target_session_attrs=read-write, or a"
                " standby may be taken for the primary"
            )
    _within("service.tenant_max_entries", service.tenant_max_entries, 0, 10**12)
    _within("service.tenant_max_bytes", service.tenant_max_bytes, 0, 10**15)
    if service.pooler not in ("auto", "transaction"):
        raise ConfigError(f"service.pooler: is {service.pooler!r}; must be auto or transaction")
    _within("service.read_lag_seconds", service.read_lag_seconds, 0.5, 3600)
    _within("service.hot_bytes", service.hot_bytes, 0, 2**40)
    _within("service.hot_ttl_seconds", service.hot_ttl_seconds, 0, 3600)
    _within("service.database_pool_size", service.database_pool_size, 1, 1000)
    _within("service.statement_timeout_ms", service.statement_timeout_ms, 10, 600_000)
    _within("service.max_connections", service.max_connections, 1, 1_000_000)
    _within("service.body_idle_seconds", service.body_idle_seconds, 0.1, 3600)
    _within("service.max_request_bytes", service.max_request_bytes, 1024, 2**30)


def _names_several_hosts(url: str) -> bool:
    """Before the path, or as `host=a,b` behind it."""
    place, _, query = url.partition("?")
    return "," in place.rpartition("@")[2] or re.search(r"(^|&)host=[^&]*,", query) is not None


def _check_proxy(proxy: Proxy) -> None:
    split_listen("proxy.listen", proxy.listen)
    _check_url("proxy.service_url", proxy.service_url)
    _check_url("proxy.upstream", proxy.upstream)
    trimmed = proxy.upstream.rstrip("/")
    if trimmed.endswith("/v1"):
        raise ConfigError(
            f"proxy.upstream: is {proxy.upstream!r}; the request's path is appended,"
            f" so write {trimmed.removesuffix('/v1')!r}"
        )
    if urlsplit(proxy.upstream).netloc == proxy.listen:
        raise ConfigError(f"proxy.upstream: is {proxy.upstream!r}, which is the proxy itself")
    if proxy.lookup_budget_ms is not None:
        _within("proxy.lookup_budget_ms", proxy.lookup_budget_ms, 1, 60_000)
    _within("proxy.put_timeout_ms", proxy.put_timeout_ms, 10, 600_000)
    _within("proxy.policy_poll_seconds", proxy.policy_poll_seconds, 0.1, 2)
    _within("proxy.credential_proof_seconds", proxy.credential_proof_seconds, 0, 31_536_000)
    _within("proxy.upstream_connect_seconds", proxy.upstream_connect_seconds, 0.01, 3600)
    _within("proxy.upstream_idle_seconds", proxy.upstream_idle_seconds, 0.01, 86_400)
    _within("proxy.max_connections", proxy.max_connections, 1, 1_000_000)
    _within("proxy.max_request_bytes", proxy.max_request_bytes, 1024, 2**30)
    names = [
        (f"proxy.headers.{f}", getattr(proxy.headers, f)) for f in proxy.headers.__struct_fields__
    ]
    names += [(f"proxy.key_headers[{i}]", name) for i, name in enumerate(proxy.key_headers)]
    for field, name in names:
        if not _HEADER.fullmatch(name):
            raise ConfigError(f"{field}: {name!r} is not a header name")
    if 0 < len(proxy.scope_secret) < 16:
        raise ConfigError("proxy.scope_secret: is too short; must have at least 16 characters")


def _check_embed(at: str, embed: Embed) -> None:
    if embed.provider not in ("local", "openai", "azure_openai", "none"):
        raise ConfigError(
            f"{at}.provider: is {embed.provider!r}; must be local, openai, azure_openai or none"
        )
    if embed.base_url:
        _check_url(f"{at}.base_url", embed.base_url)
    elif embed.provider == "azure_openai":
        raise ConfigError(
            f"{at}.base_url: is required for azure_openai (https://NAME.openai.azure.com)"
        )
    if embed.provider == "azure_openai" and not embed.model:
        raise ConfigError(f"{at}.model: is required for azure_openai (the deployment's name)")
    if embed.provider == "azure_openai" and not embed.api_key:
        raise ConfigError(f"{at}.api_key: is required for azure_openai (or api_key_file)")
    if embed.provider == "local" and (embed.base_url or embed.model or embed.dimensions):
        raise ConfigError(
            f"{at}.provider: is 'local', which takes no base_url, model or dimensions;"
            " remote providers are openai and azure_openai"
        )
    _within(f"{at}.dimensions", embed.dimensions, 0, 3984)
    _within(f"{at}.timeout_ms", embed.timeout_ms, 1, 600_000)
    _within(f"{at}.max_input_bytes", embed.max_input_bytes, 1, 10_000_000)


def _check_identities(settings: Settings) -> None:
    seen: set[str] = set()
    for i, identity in enumerate(settings.identity):
        at = f"identity[{i}]"
        if bool(identity.san) == bool(identity.sha256):
            raise ConfigError(f"{at}: exactly one of san and sha256 is required")
        if identity.san and not identity.san.startswith(("URI:", "DNS:")):
            raise ConfigError(f"{at}.san: is {identity.san!r}; must start with URI: or DNS:")
        if identity.sha256 and not _FINGERPRINT.fullmatch(identity.sha256):
            raise ConfigError(f"{at}.sha256: must be 64 lower-case hexadecimal digits")
        if not _TENANT.fullmatch(identity.tenant):
            raise ConfigError(f"{at}.tenant: must match {_TENANT.pattern}")
        if not identity.roles or not set(identity.roles) <= ROLES:
            raise ConfigError(f"{at}.roles: must be some of {', '.join(sorted(ROLES))}")
        name = identity.san or identity.sha256
        if name in seen:
            raise ConfigError(f"{at}: {name} stands in two identities")
        seen.add(name)
    if settings.identity and not settings.service.tls.on:
        raise ConfigError(
            "identity: needs [service.tls]; without it every caller is tenant default"
        )


def _check_tenants(settings: Settings) -> None:
    seen: set[str] = set()
    for i, tenant in enumerate(settings.tenant):
        if not _TENANT.fullmatch(tenant.name):
            raise ConfigError(f"tenant[{i}].name: must match {_TENANT.pattern}")
        if tenant.name in seen:
            raise ConfigError(f"tenant[{i}].name: {tenant.name} stands in two tables")
        seen.add(tenant.name)
        _within(f"tenant[{i}].max_entries", tenant.max_entries, 0, 10**12)
        _within(f"tenant[{i}].max_bytes", tenant.max_bytes, 0, 10**15)


def _check_url(field: str, value: str) -> None:
    try:
        url = urlsplit(value)
        fine = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 0) >= 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(
            f"{field}: is {value!r}; must be http://HOST[:PORT] or https://HOST[:PORT]"
        )
    if url.query or url.fragment or url.username or url.password:
        raise ConfigError(f"{field}: must have no user, query or fragment")


def _all_or_none(field: str, table: object, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not getattr(table, name)]
    if missing and len(missing) < len(names):
        raise ConfigError(f"{field}.{missing[0]}: is missing; {', '.join(names)} go together")


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{field}: is {value:,}; must be {low:,} to {high:,}")
