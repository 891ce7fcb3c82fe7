"""`cachesvc up`: Postgres, migrations, service and proxy in one command, supervised."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from cachesvc import __version__
from cachesvc.commands.options import settings_flags
from cachesvc.config import replace
from cachesvc.config_checks import split_listen
from cachesvc.errors import CacheError, ConfigError, StartError
from cachesvc.part import Work
from cachesvc.settings import Proxy
from cachesvc.supervise import Part, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cachesvc.settings import Settings

_QUESTION = "How do I reset my password?"
_REPHRASED = "How can I reset my password?"


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts run beside Postgres and the service."""

    proxy: bool = True
    demo: bool = False
    default_policy: bool = True


@click.command(epilog="Example:  cachesvc up --upstream https://api.openai.com")
@settings_flags(
    "--data-dir", "--service-listen", "--proxy-listen", "--upstream", "--database-url", "--insecure"
)
@click.option("--demo", is_flag=True, help="Use the built-in demo upstream: no API key needed.")
def up(settings: Settings, *, demo: bool) -> None:
    """Run everything: embedded Postgres, migrations, the service and the proxy.

    Creates the policy `default` for the tenant `default`, restarts what dies, and stops all on
    Ctrl-C or SIGTERM.
    """
    if demo and settings.proxy.upstream != Proxy().upstream:
        raise ConfigError("--demo: brings its own upstream; leave out proxy.upstream or --demo")
    run_parts(settings, Parts(demo=demo))


def run_parts(settings: Settings, parts: Parts) -> None:
    """Start the parts, print where they are, and watch them until a signal asks to stop."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s up %(levelname)s %(message)s"
    )
    run = _Run(settings, parts)
    with Supervisor() as supervisor:
        try:
            run.start(supervisor)
        except CacheError:
            if supervisor.stopping:  # a signal came while a part was starting
                return
            raise
        click.echo(run.banner())
        sys.stdout.flush()
        supervisor.watch()


@dataclass
class _Run:
    """What one `up` knows: settings that grow as parts tell their addresses."""

    settings: Settings
    parts: Parts
    urls: dict[str, list[str]] = field(default_factory=dict)

    def start(self, supervisor: Supervisor) -> None:
        """Start all parts in order. Raises CacheError for the first that cannot."""
        _make_data_dir(self.settings.data_path)
        if self.parts.proxy:
            self._prepare_proxy()
        self._start_database(supervisor)
        if self.parts.demo:
            supervisor.start(self._part("demo upstream", "demo", self._set_upstream))
        supervisor.start(self._part("service", "service", self._set_service))
        if self.parts.proxy:
            supervisor.start(self._part("proxy", "proxy", self._set_proxy))

    def banner(self) -> str:
        """Where everything is, and what to paste."""
        service = self.urls["service"]
        lines = [f"cachesvc {__version__}", "", f"  data      {self.settings.data_dir}"]
        lines.append(f"  service   {service[0]}")
        if len(service) > 1:
            lines.append(f"  admin     {service[1]}   (/readyz, /metrics, /openapi.json)")
        if self.parts.proxy:
            proxy = self.urls["proxy"][0]
            upstream = self.settings.proxy.upstream
            note = "  (the built-in demo: no model, it echoes)" if self.parts.demo else ""
            lines += [f"  proxy     {proxy}  ->  {upstream}{note}", "", *self._to_paste(proxy)]
        return "\n".join([*lines, "", "Ctrl-C stops everything."])

    def _to_paste(self, proxy: str) -> list[str]:
        model = "cachesvc-demo" if self.parts.demo else "gpt-4o-mini"
        key = "" if self.parts.demo else ' -H "authorization: Bearer $OPENAI_API_KEY"'

        def curl(question: str) -> str:
            body = f'{{"model":"{model}","messages":[{{"role":"user","content":"{question}"}}]}}'
            return (
                f"  curl -si {proxy}/v1/chat/completions -H 'content-type: application/json'{key}"
                f" -d {shlex.quote(body)}"
            )

        return [
            "Ask, and ask again (MISS, then HIT):",
            "",
            curl(_QUESTION),
            curl(_QUESTION),
            "",
            "In other words (HIT, tier semantic):",
            "",
            curl(_REPHRASED),
        ]

    def _prepare_proxy(self) -> None:
        if self.settings.service.tls.on and not self.settings.proxy.tls.on:
            raise ConfigError(
                "proxy.tls: is required here; with [service.tls] the service refuses a proxy"
                " without a client certificate (`cachesvc certs` makes one)"
            )
        if not self.settings.proxy.scope_secret:
            secret = _scope_secret(self.settings.data_path)
            self.settings = replace(self.settings, "proxy.scope_secret", value=secret)
        tables = (self.settings.embed, *self.settings.embed_tables.values())
        if any(table.provider == "local" for table in tables):
            from cachesvc.embed.model_files import ensure_built

            ensure_built(self.settings.data_path, _say)

    def _start_database(self, supervisor: Supervisor) -> None:
        from cachesvc.store.migrate import migrate_in_subprocess

        if not self.settings.service.database_url:
            from cachesvc.store.embedded import EmbeddedPostgres

            postgres = EmbeddedPostgres(self.settings.data_path)
            supervisor.start(postgres)
            url = postgres.url
            self.settings = replace(self.settings, "service.database_url", value=url)
        migrate_in_subprocess(self.settings.service.database_url)

    def _part(self, name: str, kind: str, started: Callable[[list[str]], None]) -> Part:
        def work() -> Work:
            port = 0  # any; a restarted one comes back where it was
            if kind == "demo" and "demo" in self.urls:
                port = split_listen("demo", self.urls["demo"][0].removeprefix("http://"))[1]
            return Work(self.settings, self.parts.default_policy, port)

        return Part(name, kind, work, started)

    def _set_upstream(self, urls: list[str]) -> None:
        self.urls["demo"] = urls
        self.settings = replace(self.settings, "proxy.upstream", value=urls[0])
        # Its port changes from run to run; what it is called in keys must not.
        name = self.settings.proxy.upstream_name or "cachesvc-demo"
        self.settings = replace(self.settings, "proxy.upstream_name", value=name)

    def _set_service(self, urls: list[str]) -> None:
        # The port that was found stays: a restarted part comes back where it was.
        self.urls["service"] = urls
        self.settings = _keep_port(self.settings, "service.listen", urls[0])
        self.settings = replace(self.settings, "proxy.service_url", value=urls[0])

    def _set_proxy(self, urls: list[str]) -> None:
        self.urls["proxy"] = urls
        self.settings = _keep_port(self.settings, "proxy.listen", urls[0])


def _keep_port(settings: Settings, dotted: str, url: str) -> Settings:
    section, _, name = dotted.partition(".")
    host = getattr(getattr(settings, section), name).rpartition(":")[0]
    return replace(settings, dotted, value=f"{host}:{url.rpartition(':')[2]}")


def _make_data_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise StartError(f"data_dir: {path} cannot be made: {exc.strerror}") from exc


def _scope_secret(data_dir: Path) -> str:
    """The secret that keys scopes, made once per data directory."""
    path = data_dir / "scope_secret"
    try:
        if not path.exists():
            # Written whole before it gets its name, and never over another's: two processes that
            # start at once read the same secret.
            fresh = data_dir / f"scope_secret.{os.getpid()}"
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_urlsafe(32) + "\n", "utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
            fresh.unlink()
        return path.read_text("utf-8").strip()
    except OSError as exc:
        raise StartError(f"{path}: cannot be made or read: {exc.strerror}") from exc


def _say(message: str) -> None:
    click.echo(message, err=True)
