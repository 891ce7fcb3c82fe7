"""`cachesvc doctor`: is everything that should be there, there, and does it answer?"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click
import httpx

from cachesvc.client import CacheClient
from cachesvc.commands.doctor_database import examine_database
from cachesvc.commands.finding import FAIL, OK, WARN, Finding
from cachesvc.commands.options import json_flag, settings_flags
from cachesvc.commands.show import print_json, print_table
from cachesvc.errors import CacheError, ConfigError, EmbedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.settings import Embed, Settings

_EXPIRY_WARNING = timedelta(days=7)


@click.command(epilog="Example:  cachesvc doctor --config /etc/cachesvc.toml")
@settings_flags("--data-dir", "--database-url", "--service-listen", "--proxy-listen")
@json_flag
def doctor(settings: Settings, *, as_json: bool) -> None:
    """Check packages, embedders, database, certificates, service, policies and proxy.

    Exit code 1 on a failure. It changes nothing, and asks each remote embedder for one vector. A
    part that does not run is a warning: it may run elsewhere.
    """
    findings = list(examine(settings))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        print_table(("what", "state", "found", "advice"), findings)
    if any(finding.state == FAIL for finding in findings):
        raise SystemExit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, in the order of a start."""
    yield _extra("service", "asyncpg")
    yield _extra("proxy", "aiohttp")
    tables = {"": settings.embed, **settings.embed_tables}
    if any(table.provider == "local" for table in tables.values()):
        yield _model(settings)
    dimensions = {table.dimensions for table in tables.values()}
    for name, table in tables.items():
        if table.provider != "local":
            finding, answered = _embedder(name, table)
            dimensions.add(answered)
            yield finding
    if find_spec("asyncpg"):
        yield from examine_database(settings, dimensions - {0})
    if settings.service.tls.on:
        yield from _certificates(settings)
    if not settings.proxy.scope_secret and not (settings.data_path / "scope_secret").exists():
        advice = "only `cachesvc up` makes one; a proxy by itself needs it set"
        yield Finding("scope secret", WARN, "none", advice)
    scheme = "https" if settings.service.tls.on else "http"
    admin = settings.service.admin_listen or "127.0.0.1:8702"
    service = f"http://{admin if scheme == 'https' else settings.service.listen}"
    yield _ready("service", service)
    yield from _policies(settings)
    yield _ready("proxy", f"http://{settings.proxy.listen}")


def _extra(name: str, package: str) -> Finding:
    if find_spec(package):
        return Finding(f"{name} packages", OK, "installed")
    return Finding(f"{name} packages", WARN, "missing", f"pip install 'cachesvc[{name}]'")


def _embedder(name: str, table: Embed) -> tuple[Finding, int]:
    """A remote table, asked for one vector; and how many dimensions that has, 0 without one."""
    from cachesvc.embed.factory import remote

    what, at = (f"embedder {name}", f"embed.{name}") if name else ("embedder", "embed")
    if table.provider == "none":
        return Finding(what, OK, "none: exact matches only"), 0

    async def ask() -> bytes | None:
        embedder = remote(table, at)
        try:
            return await embedder.embed("a")
        finally:
            await embedder.close()

    try:
        dimensions = len(asyncio.run(ask()) or b"") // 4
    except (EmbedError, ConfigError) as exc:
        return Finding(what, FAIL, exc.message, f"is [{at}] right, and is it reached from here?"), 0
    return Finding(what, OK, f"{table.provider} answers, {dimensions} dimensions"), dimensions


def _model(settings: Settings) -> Finding:
    from cachesvc.embed.model_files import status

    found = status(settings.data_path)
    if found.built and not found.problems:
        return Finding("model", OK, found.built)
    if found.built or found.weights:
        problem = "; ".join(found.problems) or "not built yet: the first start builds it"
        return Finding("model", WARN, problem, "cachesvc model install")
    return Finding("model", FAIL, "not installed", "cachesvc model install, or set embed.provider")


def _certificates(settings: Settings) -> Iterator[Finding]:
    tls, proxy = settings.service.tls, settings.proxy.tls
    for what, path in (("service certificate", tls.cert_file), ("client CA", tls.client_ca_file)):
        yield _certificate(what, path)
    if proxy.on:
        yield _certificate("proxy certificate", proxy.cert_file)
    if not settings.identity:
        yield Finding("identities", FAIL, "none", "without [[identity]] every caller is refused")


def _certificate(what: str, path: str) -> Finding:
    from cachesvc.certificates import valid_until

    try:
        ends = valid_until(path)
    except CacheError as exc:
        return Finding(what, FAIL, exc.message)
    left = ends - datetime.now(timezone.utc)
    if left < timedelta(0):
        return Finding(what, FAIL, f"expired {ends:%Y-%m-%d}", "renew it")
    state = WARN if left < _EXPIRY_WARNING else OK
    return Finding(what, state, f"valid until {ends:%Y-%m-%d}")


def _policies(settings: Settings) -> Iterator[Finding]:
    """Policies that name a table of [embed] which these settings do not have."""
    proxy = settings.proxy
    tls = {"cert_file": proxy.tls.cert_file, "key_file": proxy.tls.key_file}
    try:
        with CacheClient(
            proxy.service_url, ca_file=proxy.tls.ca_file, timeout_seconds=2.0, **tls
        ) as client:
            policies = client.policies()
    except CacheError as exc:
        yield Finding("policies", WARN, exc.message, "is proxy.service_url right?")
        return
    missing = [policy for policy in policies if settings.embed_table(policy.embed) is None]
    for policy in missing:
        advice = f"add [embed.{policy.embed}], or its exact matches are all it serves"
        yield Finding("policies", WARN, f"{policy.id} names [embed.{policy.embed}]", advice)
    if not missing:
        yield Finding("policies", OK, f"{len(policies)}, each with its embedder")


def _ready(name: str, url: str) -> Finding:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False)
    except httpx.TransportError:
        return Finding(name, WARN, f"does not answer at {url}", f"is the {name} running?")
    if answer.status_code == 200:
        return Finding(name, OK, f"ready at {url}")
    return Finding(name, FAIL, f"not ready: {answer.text.strip()[:200]}")
