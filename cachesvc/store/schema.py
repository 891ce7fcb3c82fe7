"""Which schema this release needs, told without importing Alembic."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from cachesvc.errors import StartError

_PACKAGE = Path(__file__).resolve().parent.parent
_REVISION_FILE = re.compile(r"([0-9]{4})_\w+\.py")


@cache
def migrations_folder() -> Path:
    """`cachesvc/_migrations` in a wheel, `migrations` in a checkout. Raises StartError."""
    for folder in (_PACKAGE / "_migrations", _PACKAGE.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise StartError("the migrations are missing from this installation of cachesvc")


@cache
def known_revisions() -> tuple[str, ...]:
    """Every revision this release knows, oldest first. Files are named by their revision."""
    files = (migrations_folder() / "versions").iterdir()
    return tuple(sorted(m[1] for m in map(_REVISION_FILE.fullmatch, (f.name for f in files)) if m))


def expected_revision() -> str:
    """The newest revision this release knows, which is the one it works on."""
    return known_revisions()[-1]


def complaint(current: str | None) -> str | None:
    """What is wrong with a database at revision `current`; None when nothing is."""
    expected = expected_revision()
    if current == expected:
        return None
    if current is None:
        return "the database has no cachesvc schema: run cachesvc migrate"
    if current in known_revisions():
        return f"the schema is at {current}, this release needs {expected}: run cachesvc migrate"
    return f"the schema is at {current}, which this release does not know (it needs {expected})"
