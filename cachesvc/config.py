"""Reads the settings, once, and checks them at the door. The only reader of the environment.

Order of precedence: flags, then `CACHESVC_<SECTION>_<FIELD>`, then the TOML file, then defaults.
Secrets may come from a file named by `<field>_file`. A wrong setting raises ConfigError with one
line that names the field, what is wrong with its value, and the allowed range.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cachesvc.config_checks import check
from cachesvc.errors import ConfigError
from cachesvc.settings import Embed, Section, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping


_TABLE_NAME = re.compile(r"[a-z0-9_-]{1,32}")


def load(path: str | None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a file, the environment and flags.

    `flags` maps dotted names ("proxy.listen") to values; None values are skipped.
    Raises ConfigError.
    """
    path = path or os.environ.get("CACHESVC_CONFIG") or None
    file = _read_file(path) if path else {}
    environment: dict[str, Any] = {}
    _read_environment(environment, Settings, "CACHESVC", ())
    _read_table_environment(environment, _tables_of(file))
    flagged: dict[str, Any] = {}
    for dotted, value in (flags or {}).items():
        if value is not None:
            _set(flagged, tuple(dotted.split(".")), value)
    tree: dict[str, Any] = {}
    for source in (file, environment, flagged):
        _read_secret_files(source)
        _merge(tree, source)
    _place_data(tree)
    tables = _take_tables(tree)
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as exc:
        raise ConfigError(_one_line(str(exc))) from exc
    settings = msgspec.structs.replace(settings, embed_tables=tables)
    check(settings)
    return settings


def revised(settings: Settings, flags: Mapping[str, Any]) -> Settings:
    """A checked copy with `flags` laid over, as `load` lays them over a file.

    Reads neither settings files nor CACHESVC_* again. Raises ConfigError.
    """
    tree: dict[str, Any] = msgspec.to_builtins(settings)
    for dotted, value in flags.items():
        if value is not None:
            _set(tree, tuple(dotted.split(".")), value)
    _place_data(tree)
    try:
        found = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as exc:
        raise ConfigError(_one_line(str(exc))) from exc
    check(found)
    return found


def replace(settings: Settings, dotted: str, *, value: Any) -> Settings:
    """A copy with one setting changed: `replace(settings, "proxy.upstream", value=url)`."""
    section, _, name = dotted.rpartition(".")
    if not section:
        return msgspec.structs.replace(settings, **{name: value})
    inner = msgspec.structs.replace(getattr(settings, section), **{name: value})
    return msgspec.structs.replace(settings, **{section: inner})


def _place_data(tree: dict[str, Any]) -> None:
    tree["data_dir"] = str(Path(tree.get("data_dir") or default_data_dir()).expanduser().absolute())


def default_data_dir() -> str:
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return str(Path(base).expanduser() / "cachesvc")


def _read_file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc


def _read_environment(
    tree: dict[str, Any], section: type[msgspec.Struct], prefix: str, at: tuple[str, ...]
) -> None:
    # Unknown CACHESVC_* variables are left alone: Kubernetes sets CACHESVC_SERVICE_HOST and more
    # for a Service of that name.
    for field in msgspec.structs.fields(section):
        name, where = f"{prefix}_{field.name.upper()}", (*at, field.name)
        if isinstance(field.type, type) and issubclass(field.type, Section):
            _read_environment(tree, field.type, name, where)
        elif field.name not in ("identity", "tenant", "embed_tables") and name in os.environ:
            _set(tree, where, _from_text(os.environ[name], field.type, name))


def _read_table_environment(tree: dict[str, Any], known: list[str]) -> None:
    """`CACHESVC_EMBED_<NAME>_<FIELD>`: `-` in a name is `_` there."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(Embed)}
    names = {_as_variable(name): name for name in known}
    for variable, text in os.environ.items():
        rest = variable.removeprefix("CACHESVC_EMBED_")
        if rest == variable or rest.lower() in kinds:
            continue
        fields = (f for f in kinds if rest.endswith(f"_{f.upper()}") and rest != f"_{f.upper()}")
        field = max(fields, key=len, default=None)
        if field is None:
            continue
        named = rest.removesuffix(f"_{field.upper()}")
        name = names.get(named, named.lower())
        _set(tree, ("embed", name, field), _from_text(text, kinds[field], variable))


def _tables_of(tree: dict[str, Any]) -> list[str]:
    """The names of the tables within `[embed]`."""
    embed = tree.get("embed")
    tables = embed.items() if isinstance(embed, dict) else ()
    return [name for name, value in tables if isinstance(value, dict)]


def _take_tables(tree: dict[str, Any]) -> dict[str, Embed]:
    """Move `[embed.<name>]` out of the tree. Raises ConfigError."""
    if "embed_tables" in tree:
        raise ConfigError("embed_tables: is no setting; write [embed.<name>]")
    found: dict[str, Embed] = {}
    variables: dict[str, str] = {}
    for name in _tables_of(tree):
        at = f"embed.{name}"
        if not _TABLE_NAME.fullmatch(name) or name in Embed.__struct_fields__:
            raise ConfigError(f"{at}: must match {_TABLE_NAME.pattern} and be no field")
        other = variables.setdefault(_as_variable(name), name)
        if other != name:
            raise ConfigError(f"{at}: has the environment variables of embed.{other}; rename one")
        try:
            found[name] = msgspec.convert(tree["embed"].pop(name), Embed)
        except msgspec.ValidationError as exc:
            raise ConfigError(_one_line(str(exc), at)) from exc
    return found


def _as_variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _from_text(text: str, kind: Any, name: str) -> Any:
    if kind is str:
        return text
    if kind == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        if kind == dict[str, Any]:
            return msgspec.json.decode(text, type=dict[str, Any])
        return msgspec.convert(text, kind, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError) as exc:
        expected = str(exc).partition(" - at ")[0].replace("`", "")
        raise ConfigError(f"{name}: is {text[:64]!r}; {expected}") from exc


def _set(tree: dict[str, Any], where: tuple[str, ...], value: Any) -> None:
    for name in where[:-1]:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{name}: must be a table")
        tree = inner
    tree[where[-1]] = value


def _merge(tree: dict[str, Any], source: dict[str, Any]) -> None:
    """Lay `source` over `tree`, table by table."""
    for name, value in source.items():
        below = tree.get(name)
        if isinstance(below, dict) and isinstance(value, dict) and name != "forced":
            _merge(below, value)
        else:
            tree[name] = value


def _read_secret_files(source: dict[str, Any]) -> None:
    """Put the secrets of one source's files in their place, so that it outranks lower sources."""
    places: list[tuple[tuple[str, ...], str]]
    names = ("database_url", "listen_url", "read_database_url")
    places = [(("service",), name) for name in names]
    places += [(("proxy",), "scope_secret"), (("embed",), "api_key")]
    places += [(("embed", name), "api_key") for name in _tables_of(source)]
    for at, field in places:
        section, table = ".".join(at), source.get(at[0])
        if len(at) > 1 and isinstance(table, dict):
            table = table.get(at[1])
        path = table.get(f"{field}_file") if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(path, str) or not path:
            continue
        where = f"{section}.{field}_file"
        if table.get(field):
            raise ConfigError(f"{where}: is set together with {section}.{field}; set one of them")
        try:
            table[field] = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{where}: {path} cannot be read") from exc
        if not table[field]:
            raise ConfigError(f"{where}: {path} is empty")


def _one_line(message: str, at: str = "") -> str:
    """msgspec's message with the field in front: `proxy.listen: Expected str, got int`.

    `at` is the table that was read.
    """
    what, _, where = message.partition(" - at ")
    field = f"{at}{where.strip('`').removeprefix('$')}".lstrip(".")
    return f"{field or 'settings'}: {what}".replace("`", "")
