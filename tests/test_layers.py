"""Which part may import which: the arrows of the architecture, held by reading every import.

core <- dialects, embed, store, wire;  service -> core, wire, store;  proxy -> core, wire, dialects,
embed.  The two shells meet only at core, wire and config, so that the service image carries no
model and the proxy no database driver.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import cachesvc

ROOT = Path(cachesvc.__file__).parent

# A part is a folder or a file of the package. What is not listed here fails.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "wire": {"core", "errors"},
    "wire_admin": {"errors", "wire"},
    "settings": set(),
    "config": {"config_checks", "errors", "settings"},
    "config_checks": {"errors", "settings"},
    "dialects": {"core", "errors"},
    "embed": {"errors", "settings"},
    "store": {"core", "deadline", "errors"},
    "edge": {"begun", "errors"},
    "begun": set(),
    "deadline": {"begun"},
    "service": {
        *("__init__", "config_checks", "core", "deadline", "edge", "errors", "settings", "store"),
        *("wire", "wire_admin"),
    },
    "proxy": {
        *("config_checks", "core", "deadline", "dialects", "edge", "embed", "errors", "settings"),
        "wire",
    },
    "client": {"core", "errors", "wire", "wire_admin"},
    "certificates": {"errors"},
    "demo": set(),
    "part": {"settings", "demo", "edge", "errors", "proxy", "service"},
    "supervise": {"errors", "part"},
    "commands": {
        *("__init__", "certificates", "client", "config", "config_checks", "core", "embed"),
        *("errors", "part", "settings", "store", "supervise", "wire_admin"),
    },
    "cli": {"__init__", "errors"},  # commands are loaded by name
    "__main__": {"cli"},
    "inprocess": {"config", "core", "errors", "proxy", "settings"},
    "__init__": {"client", "inprocess"},
}
# Libraries that only the named parts may touch.
ONLY_IN: dict[str, set[str]] = {
    "asyncpg": {"store", "commands"},
    "pgvector": {"store"},
    "sqlalchemy": {"store"},  # in the process that migrates
    "alembic": {"store"},
    "starlette": {"service"},
    "uvicorn": {"edge"},
    "aiohttp": {"proxy", "embed"},
    "httpx": {"client", "commands", "inprocess"},
    "httpx2": {"inprocess"},
    "http_sfv": {"proxy"},
    "onnx": {"embed"},
    "onnxruntime": {"embed"},
    "tokenizers": {"embed"},
    "prometheus_client": {"service", "proxy"},
    "click": {"cli", "commands"},
    "rich": {"commands"},
    "cryptography": {"certificates", "service"},
}
# The pure parts wait for nothing, read no clock, and look nowhere.
PURE = ("core", "dialects", "wire", "wire_admin", "errors")
PURE_LIBRARIES = ("msgspec", "numpy", "jsonpath")
IMPURE = {
    "asyncio",
    "logging",
    "os",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, wherever in the file it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            whole = node.module == "cachesvc"
            found += [f"{node.module}.{a.name}" for a in node.names] if whole else [node.module]
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if "_migrations" not in path.parts)


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in FILES])
def test_every_import_follows_an_arrow(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is a new part: say what it may import"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "cachesvc":
            target = rest.partition(".")[0]
            known = target if target in MAY_IMPORT else "__init__"
            assert known == part or known in MAY_IMPORT[part], f"{part} imports {name}"
        elif top in ONLY_IN:
            assert part in ONLY_IN[top], f"{part} imports {top}"
        elif part in PURE:
            assert top not in IMPURE, f"{part} is pure, but imports {top}"
            assert top in sys.stdlib_module_names or top in PURE_LIBRARIES, f"{part}: {top}"


def test_pure_parts_never_wait() -> None:
    for path in FILES:
        if part_of(path) in PURE:
            waits = [
                n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Await)
            ]
            assert not waits, f"{path} waits"


def test_every_arrow_is_used() -> None:
    """An arrow that nothing follows would permit what nobody meant."""
    used: dict[str, set[str]] = {part: set() for part in MAY_IMPORT}
    for path in FILES:
        names = [
            name.partition(".")[2].partition(".")[0] for name in imports(path) if "cachesvc" in name
        ]
        used[part_of(path)] |= {name if name in MAY_IMPORT else "__init__" for name in names}
    unused = {part: arrows - used[part] for part, arrows in MAY_IMPORT.items()}
    assert not {part: arrows for part, arrows in unused.items() if arrows}


def test_only_the_settings_read_the_environment() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                # One library is told by it, before it is loaded, that it must not report home.
                told = path.relative_to(ROOT).as_posix() == "embed/runtime.py"
                assert told or part_of(path) == "config", f"{path}:{node.lineno}"


def test_sql_stands_in_one_file() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.split()
                is_sql = len(words) > 3 and words[0].lower() in ("select", "insert", "delete")
                assert not (is_sql and {"from", "into"} & set(words)), f"{path}:{node.lineno}"
