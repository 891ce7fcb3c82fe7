"""`cachesvc policy apply`: make the service's policies what a file says they are."""

from __future__ import annotations

import sys
import tomllib
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec

from cachesvc.commands.options import client_flags, json_flag
from cachesvc.commands.show import print_json
from cachesvc.core.policy import ID_PATTERN, Policy, read_policy, resolve
from cachesvc.errors import BadRequest, ConfigError, Invalid, ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesvc.client import CacheClient

_READ_ONLY = ("id", "generation")
_SIGNS = {"add": "+", "change": "~", "remove": "-"}
_EXAMPLE = """\b
Example of FILE:
  [policy.default]
  threshold = 0.95
  ttl_seconds = 600
  [policy."team.support"]
  applies_to = "model:gpt-4o"
  bypass_on = [{ header = "x-debug", equals = "1" }]

Example:  cachesvc policy apply policies.toml --dry-run"""


class FieldChange(msgspec.Struct):
    """A field's value on the service (None where the policy is new) and in the file."""

    old: Any
    new: Any


class Change(msgspec.Struct):
    """What is done to one policy; `action` is "add", "change" or "remove"."""

    policy_id: str
    action: str
    fields: dict[str, FieldChange] = {}


class Plan(msgspec.Struct):
    """What `policy apply` prints. `kept` are policies of the service that the file does not name.

    `applied` is False after --dry-run.
    """

    changes: list[Change]
    kept: list[str]
    applied: bool = False


@click.command("apply", epilog=_EXAMPLE)
@click.argument("file", type=click.File("rb"))
@click.option("--dry-run", is_flag=True, help="Show what would change, change nothing.")
@click.option("--prune", is_flag=True, help="Delete the policies that FILE does not name.")
@click.option("--yes", is_flag=True, help="With --prune on a terminal: do not ask.")
@client_flags
@json_flag
def apply(
    client: CacheClient, *, file: BinaryIO, dry_run: bool, prune: bool, yes: bool, as_json: bool
) -> None:
    """Make the service's policies those of FILE, and show every field that changes.

    FILE is TOML with one table [policy.<id>] per policy; fields it leaves out take their defaults.
    All of it is checked before anything is changed. Policies that FILE does not name stay, unless
    --prune deletes them with everything they hold.
    """
    wanted = read_policies(file.name, file.read())
    plan = plan_of({now.id: now for now in client.policies()}, wanted, prune=prune)
    if not as_json:
        _show(plan)
    if not dry_run:
        _confirm(plan, yes=yes)
        _carry_out(client, plan, wanted)
        plan.applied = True
    if as_json:
        print_json(plan)
    elif plan.changes:
        click.echo("applied" if plan.applied else "dry run: nothing was changed")


def read_policies(name: str, document: bytes) -> dict[str, dict[str, Any]]:
    """The fields given per policy. Raises ConfigError naming file, policy, field and bound."""
    try:
        tree = tomllib.loads(document.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{name}: is not TOML: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{name}: is nested too deeply") from exc
    policies = tree.pop("policy", None)
    if tree:
        raise ConfigError(f"{name}: {next(iter(tree))}: is not known; must be [policy.<id>]")
    if not isinstance(policies, dict) or not policies:
        raise ConfigError(f"{name}: policy: must be tables [policy.<id>], at least one")
    for policy_id, fields in policies.items():
        _check(name, policy_id, fields)
    return policies


def plan_of(
    there: Mapping[str, Policy], wanted: Mapping[str, dict[str, Any]], *, prune: bool
) -> Plan:
    """What has to be done so that the service has what is wanted: in the file's order."""
    changes = []
    for policy_id, fields in wanted.items():
        now = there.get(policy_id)
        made = resolve(read_policy(_encoded(fields), policy_id, messagepack=True), policy_id, 0)
        differing = _differing(now, made, fields)
        if now is None or differing:
            changes.append(Change(policy_id, "change" if now else "add", differing))
    unnamed = sorted(there.keys() - wanted.keys())
    if prune:
        changes += [Change(policy_id, "remove") for policy_id in unnamed]
    return Plan(changes, kept=[] if prune else unnamed)


def _check(name: str, policy_id: str, fields: Any) -> None:
    at = f"policy.{policy_id}"
    if not ID_PATTERN.fullmatch(policy_id):
        raise ConfigError(f"{name}: {at}: the id must match {ID_PATTERN.pattern}")
    if not isinstance(fields, dict):
        raise ConfigError(f"{name}: {at}: must be a table")
    try:
        read_policy(_encoded(fields), policy_id, messagepack=True)
    except (BadRequest, Invalid) as exc:
        raise ConfigError(f"{name}: {at}{exc.message.removeprefix('policy')}") from exc
    except OverflowError as exc:
        raise ConfigError(f"{name}: {at}: a number is too large") from exc


def _encoded(fields: dict[str, Any]) -> bytes:
    # MessagePack, since JSON has neither infinity nor dates to complain about.
    return msgspec.msgpack.encode(fields)


def _differing(now: Policy | None, made: Policy, given: dict[str, Any]) -> dict[str, FieldChange]:
    """The fields in which the two differ; of a new policy those that the file gives."""
    names = [name for name in made.__struct_fields__ if name not in _READ_ONLY]
    if now is None:
        return {name: FieldChange(None, getattr(made, name)) for name in names if name in given}
    pairs = {name: FieldChange(getattr(now, name), getattr(made, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair.old != pair.new}


def _show(plan: Plan) -> None:
    for change in plan.changes:
        click.echo(f"{_SIGNS[change.action]} {change.policy_id}")
        for name, field in change.fields.items():
            new = _json(field.new)
            told = new if change.action == "add" else f"{_json(field.old)} → {new}"
            click.echo(f"    {name}: {told}")
    if plan.kept:
        click.echo(f"not in the file, and kept: {', '.join(plan.kept)}")
    if not plan.changes:
        click.echo("nothing differs")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _confirm(plan: Plan, *, yes: bool) -> None:
    """On a terminal, ask before anything is deleted. Raises click.Abort."""
    removed = [change.policy_id for change in plan.changes if change.action == "remove"]
    if removed and not yes and sys.stdin.isatty():
        click.confirm(
            f"Delete {', '.join(removed)} with everything they hold?", abort=True, err=True
        )


def _carry_out(client: CacheClient, plan: Plan, wanted: Mapping[str, dict[str, Any]]) -> None:
    """Raises ServiceError, which says what was done before it."""
    done: list[str] = []
    for change in plan.changes:
        try:
            if change.action == "remove":
                client.delete_policy(change.policy_id)
            else:
                fields = {k: v for k, v in wanted[change.policy_id].items() if k not in _READ_ONLY}
                client.save_policy(change.policy_id, fields)
        except ServiceError as exc:
            before = f"; applied before it: {', '.join(done)}" if done else ""
            message = f"policy.{change.policy_id}: {exc.message}{before}"
            raise type(exc)(message, status=exc.status, code=exc.code) from exc
        done.append(change.policy_id)
