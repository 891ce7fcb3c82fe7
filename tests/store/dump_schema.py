"""Writes migrations/schema.sql anew: `python -m tests.store.dump_schema`."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from cachesvc.store import binaries
from cachesvc.store.embedded import EmbeddedPostgres
from cachesvc.store.migrate import migrate_in_subprocess
from cachesvc.store.schema import migrations_folder

COMMITTED = migrations_folder() / "schema.sql"
# Comments name versions, settings and restrictions change with pg_dump: none is part of a schema.
_NOISE = re.compile(
    r"^(--.*|\\(un)?restrict .*|SET .*|SELECT pg_catalog.set_config.*)$", re.MULTILINE
)
_HEADER = (
    "-- The schema at the newest revision, as pg_dump shows it: for reading, and compared by a "
    "test.\n-- Written by: python -m tests.store.dump_schema\n\n"
)


def dump(url: str) -> str:
    """The schema of a database as text, the same for the same schema."""
    done = subprocess.run(
        [
            binaries.installed() / "pg_dump",
            "--schema-only",
            "--no-owner",
            "--no-privileges",
            "--exclude-table=alembic_version",
            url,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = _NOISE.sub("", done.stdout)
    return _HEADER + re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "data")
        server.start()
        try:
            migrate_in_subprocess(server.url)
            COMMITTED.write_text(dump(server.url), "utf-8")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
