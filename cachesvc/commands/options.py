"""Flags that several commands share: the same name means the same thing everywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cachesvc import config
from cachesvc.client import CacheClient

if TYPE_CHECKING:
    from cachesvc.settings import Settings

_F = TypeVar("_F", bound=Callable[..., Any])

# flag -> the setting it sets, and its help
_SETTINGS: dict[str, tuple[str, str]] = {
    "--data-dir": ("data_dir", "Where Postgres, the model and the scope secret live."),
    "--service-listen": ("service.listen", "HOST:PORT of the service."),
    "--proxy-listen": ("proxy.listen", "HOST:PORT of the proxy."),
    "--upstream": ("proxy.upstream", "URL whose answers are cached; the path is appended."),
    "--service-url": ("proxy.service_url", "URL of the service."),
    "--database-url": ("service.database_url", "postgresql://…; empty: embedded."),
    "--insecure": ("service.insecure", "Without TLS, listen beyond loopback, too."),
}


def settings_flags(*flags: str) -> Callable[[_F], _F]:
    """Add --config and the given flags; the command gets the loaded `settings`."""

    def decorate(command: _F) -> _F:
        @wraps(command)
        def run(*args: Any, config_file: str | None, **given: Any) -> Any:
            values = {_SETTINGS[flag][0]: given.pop(_name(flag)) for flag in flags}
            return command(*args, settings=config.load(config_file, values), **given)

        wrapped: Any = run
        for flag in reversed(flags):
            switch = flag == "--insecure"
            wrapped = click.option(
                flag, _name(flag), is_flag=switch, default=None, help=_SETTINGS[flag][1]
            )(wrapped)
        return click.option(  # type: ignore[no-any-return]
            "--config", "config_file", type=click.Path(), default=None, help="The TOML file."
        )(wrapped)

    return decorate


def client_flags(command: _F) -> _F:
    """Add how to reach a running service; the command gets a `client`.

    Certificates default to those of [proxy.tls]; administration needs one with the role admin.
    """

    @settings_flags("--service-url")
    @click.option("--cert-file", default=None, help="Client certificate (PEM).")
    @click.option("--key-file", default=None, help="Its key (PEM).")
    @click.option("--ca-file", default=None, help="The CA of the service's certificate (PEM).")
    @wraps(command)
    def run(
        *args: Any,
        settings: Settings,
        cert_file: str | None,
        key_file: str | None,
        ca_file: str | None,
        **given: Any,
    ) -> Any:
        tls = settings.proxy.tls
        with CacheClient(
            settings.proxy.service_url,
            cert_file=cert_file or tls.cert_file,
            key_file=key_file or tls.key_file,
            ca_file=ca_file or tls.ca_file,
        ) as client:
            return command(*args, client=client, **given)

    return run  # type: ignore[return-value]


def json_flag(command: _F) -> _F:
    """Add --json: machine-readable output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
