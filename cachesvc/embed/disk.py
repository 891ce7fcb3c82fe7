"""Folders that appear whole or not at all, one writer at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cachesvc.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_UNFINISHED = ".unfinished-"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def one_writer(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make `folder` where it is missing, and keep other processes from writing into it meanwhile.

    Also removes what a killed writer left. Raises StartError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise StartError(f"{folder}: cannot be written: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is installing the embedding model: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(lock)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the name and place of `folder` when the block ends well.

    Raises StartError when it cannot be written. The caller is the only writer (`one_writer`).
    """
    unfinished = folder.with_name(f"{_UNFINISHED}{folder.name}-{os.getpid()}")
    replaced = folder.with_name(f"{_UNFINISHED}{folder.name}-{os.getpid()}-old")
    try:
        # Not mkdtemp, whose folders nobody else can read: what root installs, a service user loads.
        unfinished.mkdir(parents=True)
        yield unfinished
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    except OSError as exc:
        raise StartError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
