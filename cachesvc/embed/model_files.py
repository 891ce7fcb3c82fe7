"""Where the local model is, and how it comes to be there.

A home is a folder `models/all-MiniLM-L6-v2`: in the data directory, or under `share/cachesvc` of
the Python environment, where every data directory finds it. It holds `weights/` (as downloaded)
and `int8/` (built from them, what a proxy loads).
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cachesvc.embed import manifest, weights
from cachesvc.embed.disk import one_writer
from cachesvc.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], None]

BUILT = "int8"
_NEEDED = ("numpy", "onnx", "onnxruntime", "tokenizers")


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For `cachesvc model status`. Folders are None where nothing intact is."""

    name: str
    space: str
    built: str | None
    sha256: str | None
    size_bytes: int
    weights: str | None
    problems: tuple[str, ...]


def _silent(_: str) -> None:
    pass


def candidates(data_dir: Path) -> list[Path]:
    """The model's homes, in the order they are looked at."""
    return [_home(data_dir), _shared_home()]


def _home(base: Path) -> Path:
    return base / "models" / manifest.NAME


def _shared_home() -> Path:
    return _home(Path(sys.prefix) / "share" / "cachesvc")


def locate_built(data_dir: Path, say: Say = _silent) -> Path | None:
    """The first built model whose manifest and SHA-256 check out. Says which ones do not."""
    return _locate(candidates(data_dir), say)


def _locate(homes: list[Path], say: Say) -> Path | None:
    for folder in (home / BUILT for home in homes):
        if not os.path.isdir(folder):  # False, not an error, for what may not be looked at
            continue
        wrong = manifest.fault(folder)
        if wrong is None:
            return folder
        say(f"{wrong}: not used")
    return None


def ensure_built(data_dir: Path, say: Say) -> Path:
    """The folder of a built model, built into `data_dir` if there are only weights.

    Blocks: 0.1 s when it is there, about 5 s when it is built. Raises StartError.
    """
    homes = candidates(data_dir)
    # Looked for twice, so that nothing is made in a data directory that is not needed.
    built = _locate(homes, say)
    if built is not None:
        return built
    source = weights.find(homes, say)
    if source is None:
        raise StartError(
            "the local model is not installed: run `cachesvc model install` (or set embed.provider)"
        )
    _make_private(data_dir)
    with one_writer(homes[0], say):
        return _locate(homes, _silent) or _build(source, homes[0], say)


def install_model(data_dir: Path, say: Say, *, into_data_dir: bool = False) -> Path:
    """Download what is missing, build, and return the built model's folder.

    It goes into the Python environment, where every data directory finds it, or into `data_dir`
    where that cannot be written or when asked to. A second call finds it and does nothing else.
    Raises StartError.
    """
    shared = not into_data_dir and _shared_is_usable()
    home = _shared_home() if shared else _home(data_dir)
    built = _locate([home], say)
    if built is not None:
        return built
    _check_packages()
    if not shared:
        _make_private(data_dir)
    with one_writer(home, say):
        built = _locate([home], _silent)
        if built is not None:
            return built
        source = weights.find([home], say) or weights.install(home, say=say)
        return _build(source, home, say)


def status(data_dir: Path) -> ModelStatus:
    """What is there, read and checked anew (0.2 s)."""
    problems: list[str] = []
    homes = candidates(data_dir)
    built = _locate(homes, problems.append)
    about = manifest.read(built) if built else None
    source = weights.find(homes, problems.append)
    return ModelStatus(
        name=manifest.NAME,
        space=manifest.SPACE,
        built=str(built) if built else None,
        sha256=about.model_sha256 if about else None,
        size_bytes=(built / manifest.MODEL).stat().st_size if built else 0,
        weights=str(source) if source else None,
        problems=tuple(problems),
    )


def _shared_is_usable() -> bool:
    """True when the Python environment holds the model, or can be written so that it will."""
    shared = _shared_home()
    if manifest.fault(shared / BUILT) is None:
        return True
    nearest = next(place for place in (shared, *shared.parents) if os.path.exists(place))
    return os.access(nearest, os.W_OK | os.X_OK)


def _check_packages() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise StartError(
            f"the local model needs {', '.join(missing)}: run `pip install 'cachesvc[local]'`"
        )


def _make_private(data_dir: Path) -> None:
    # Secrets will live there, too: whoever makes it first closes it.
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise StartError(f"{data_dir}: cannot be made: {exc.strerror}") from exc


def _build(source: Path, home: Path, say: Say) -> Path:
    """Build in a process of its own: the 600 MB it takes are gone when it ends."""
    _check_packages()
    say("building the embedding model, once: about 5 s")
    target = home / BUILT
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cachesvc.embed.graph",
            str(source.absolute()),
            str(target.absolute()),
        ],
        # `-m` looks in the current folder first: only this package's may answer.
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return target
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    why = lines[-1]
    if done.returncode < 0:
        why = f"killed by signal {-done.returncode} (it needs about 600 MB of memory)"
    raise StartError(f"the embedding model could not be built: {why}")
