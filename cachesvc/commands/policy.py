"""`cachesvc policy`: see and change the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from cachesvc.commands.options import client_flags, json_flag, settings_flags
from cachesvc.commands.policy_apply import apply
from cachesvc.commands.show import print_json, print_table
from cachesvc.core.policy import Policy, read_policy
from cachesvc.core.scope import scope_of
from cachesvc.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from cachesvc.client import CacheClient
    from cachesvc.settings import Settings

_READ_ONLY = ("id", "generation")


@click.group(epilog="Example:  cachesvc policy set default threshold=0.95 ttl_seconds=600")
def policy() -> None:
    """See and change policies, and print the scope of a key."""


policy.add_command(apply)


@policy.command("list", epilog="Example:  cachesvc policy list --json")
@client_flags
@json_flag
def list_policies(client: CacheClient, *, as_json: bool) -> None:
    """List the tenant's policies."""
    policies = client.policies()
    if as_json:
        print_json(policies)
        return
    columns = ("id", "mode", "applies to", "tiers", "threshold", "ttl", "sharing", "generation")
    rows = (
        (
            p.id,
            p.mode if p.enabled else "disabled",
            p.applies_to,
            " ".join(p.tiers),
            p.threshold,
            f"{p.ttl_seconds} s",
            p.sharing,
            p.generation,
        )
        for p in policies
    )
    print_table(columns, rows)


@policy.command("get", epilog="Example:  cachesvc policy get default")
@click.argument("policy_id")
@client_flags
def get_policy(client: CacheClient, policy_id: str) -> None:
    """Print one policy as JSON, with every default written out."""
    print_json(client.policy(policy_id))


@policy.command("set", epilog="Example:  cachesvc policy set default 'tiers=[\"exact\"]'")
@click.argument("policy_id")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@client_flags
def set_policy(client: CacheClient, policy_id: str, fields: tuple[str, ...]) -> None:
    """Create a policy, or change fields of one. A VALUE is JSON, or else taken as text."""
    document = _given(client, policy_id)
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise ConfigError(f"{field!r}: must be FIELD=VALUE")
        document[name] = _value(value)
    print_json(client.save_policy(policy_id, document))


@policy.command("delete", epilog="Example:  cachesvc policy delete experiments")
@click.argument("policy_id")
@client_flags
def delete_policy(client: CacheClient, policy_id: str) -> None:
    """Delete a policy with everything it holds."""
    client.delete_policy(policy_id)
    click.echo(f"deleted {policy_id}")


@policy.command(
    "scope",
    epilog="Example:  cachesvc policy scope -H 'authorization: Bearer sk-123' default",
)
@click.argument("policy_id")
@click.option(
    "-H", "--header", "headers", multiple=True, help="A request header, as `Name: value`."
)
@click.option("--policy-file", type=click.File("rb"), help="Read the policy from a JSON file.")
@settings_flags("--data-dir", "--service-url")
def print_scope(
    settings: Settings, *, policy_id: str, headers: tuple[str, ...], policy_file: Any
) -> None:
    """Print the scope that a request with these headers has under a policy."""
    from cachesvc.client import CacheClient

    secret = settings.proxy.scope_secret or _made_secret(settings)
    tls = settings.proxy.tls
    if policy_file:
        rules = read_policy(policy_file.read(), policy_id)
    else:
        with CacheClient(
            settings.proxy.service_url,
            cert_file=tls.cert_file,
            key_file=tls.key_file,
            ca_file=tls.ca_file,
        ) as client:
            rules = client.policy(policy_id)
    click.echo(scope_of(_headers(headers), rules, secret.encode()))


def _made_secret(settings: Settings) -> str:
    """The secret that `cachesvc up` made in the data directory."""
    try:
        return (settings.data_path / "scope_secret").read_text("utf-8").strip()
    except OSError as exc:
        raise ConfigError("proxy.scope_secret: is required (or scope_secret_file)") from exc


def _headers(given: tuple[str, ...]) -> dict[str, list[str]]:
    read: dict[str, list[str]] = {}
    for header in given:
        name, colon, value = header.partition(":")
        if not colon:
            raise ConfigError(f"--header: {header!r} must be `Name: value`")
        as_sent = value.strip().encode("utf-8", "surrogateescape").decode("latin-1")
        read.setdefault(name.strip().lower(), []).append(as_sent)
    return read


def _given(client: CacheClient, policy_id: str) -> dict[str, Any]:
    """The fields of a policy that differ from the defaults; {} where there is no such policy."""
    try:
        now = client.policy(policy_id)
    except ServiceError as exc:
        if exc.status != 404:
            raise
        return {}
    plain = Policy(
        name=policy_id, threshold_floor=now.threshold, semantic_ttl_seconds=now.ttl_seconds
    )
    fields = {name: getattr(now, name) for name in now.__struct_fields__ if name not in _READ_ONLY}
    return {name: value for name, value in fields.items() if value != getattr(plain, name)}


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
