"""What is published works away from the checkout: migrations, types and SQL are in the wheel."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cachesvc.store.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Not isolated: the build back end is here already, and no index need be asked.
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_migrations_types_sql_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "_migrations/env.py", "_migrations/schema.sql", "store/queries.sql"):
        assert f"cachesvc/{name}" in names
    assert any(name.startswith("cachesvc/_migrations/versions/0001") for name in names)
    assert not [name for name in names if name.startswith(("tests", "migrations", "deploy"))]


def test_an_installed_wheel_migrates_a_database(
    wheel: Path, postgres: EmbeddedPostgres, empty_database_url: str, tmp_path: Path
) -> None:
    # Its own site-packages hold the wheel alone; the libraries come from ours.
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python3*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    ours = next(p for p in sys.path if p.endswith("site-packages"))
    code = (
        f"import sys; sys.path.append({ours!r}); import cachesvc; from cachesvc.cli import main;"
        f"assert cachesvc.__file__.startswith({str(site)!r}), cachesvc.__file__; main()"
    )
    done = subprocess.run(
        [str(home / "bin" / "python"), "-c", code, "migrate", "up"],
        cwd="/",
        env={"CACHESVC_SERVICE_DATABASE_URL": empty_database_url, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the schema is at 0" in done.stdout
