"""`cachesvc`: the command line's table of contents."""

from __future__ import annotations

import importlib
import sys

import click

from cachesvc import __version__
from cachesvc.errors import CacheError, ConfigError, ServiceError

# Each command is loaded when it is asked for, so that an installation without its extra still
# has all the others, and `--help` is quick.
_COMMANDS = {
    "up": "cachesvc.commands.up:up",
    "serve": "cachesvc.commands.serve:serve",
    "proxy": "cachesvc.commands.serve:proxy",
    "migrate": "cachesvc.commands.migrate:migrate",
    "model": "cachesvc.commands.model:model",
    "policy": "cachesvc.commands.policy:policy",
    "entries": "cachesvc.commands.entries:entries",
    "stats": "cachesvc.commands.entries:stats",
    "purge": "cachesvc.commands.entries:purge",
    "doctor": "cachesvc.commands.doctor:doctor",
    "certs": "cachesvc.commands.certs:certs",
}
_EXTRAS = {
    "asyncpg": "service",
    "alembic": "service",
    "starlette": "service",
    "cryptography": "service",
    "aiohttp": "proxy",
    "http_sfv": "proxy",
    "onnxruntime": "local",
    "tokenizers": "local",
    "onnx": "local",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(
    cls=_Commands,
    epilog="Start with:  cachesvc up --demo",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="cachesvc")
def cli() -> None:
    """A cache for LLM answers that runs beside a gateway.

    Settings come from flags, CACHESVC_<SECTION>_<FIELD>, and the TOML file named by --config or
    CACHESVC_CONFIG, in this order.
    """


def main() -> None:
    """Run the command line; an error is one line and exit code 1 (2 for wrong settings)."""
    try:
        cli.main(standalone_mode=True)
    except CacheError as exc:
        click.echo(f"cachesvc: {exc.message}", err=True)
        if isinstance(exc, ServiceError) and exc.status == 403:
            click.echo("give --cert-file and --key-file of an admin's certificate", err=True)
        sys.exit(2 if isinstance(exc, ConfigError) else 1)
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        extra = _EXTRAS[missing]
        click.echo(f"cachesvc: {missing} is missing: pip install 'cachesvc[{extra}]'", err=True)
        sys.exit(1)
