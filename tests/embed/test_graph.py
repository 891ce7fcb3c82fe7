"""The graph against its own float32 run: what quantising and padding may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest

from cachesvc.embed import graph, manifest
from cachesvc.embed.disk import sha256_of
from cachesvc.embed.session import Session
from cachesvc.embed.tokens import Tokens

if TYPE_CHECKING:
    from pathlib import Path

SENTENCES = [
    "hi",
    "How do I reset my password?",
    "What is the exchange rate between the euro and the US dollar today?",
    "def main():\n    return 0  # why does this not compile?",
    "I have been waiting over a week. Is the card still coming?",
    "Explain the difference between a process and a thread, with an example of each. " * 8,
]


@pytest.fixture(scope="module")
def tokens(built: Path) -> Tokens:
    return Tokens(built / "tokenizer.json")


@pytest.fixture(scope="module")
def exact(weights_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 model, before it is quantised."""
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    tensors = graph.read_safetensors(weights_folder / "model.safetensors")
    model = graph.model(tensors, graph.read_shape(weights_folder / "config.json"))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def integer(exact: Path) -> Path:
    """The integer model, quantised by the code as it is now."""
    path = exact.with_name("model-int8.onnx")
    graph.quantise(exact, path)
    return path


def _floats(vector: bytes | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert vector is not None
    return np.frombuffer(vector, "<f4")


def test_the_integer_model_agrees_with_the_float_model(
    exact: Path, integer: Path, tokens: Tokens
) -> None:
    quantised, floating = Session(integer, tokens), Session(exact, tokens)
    for sentence in SENTENCES:
        agreement = _floats(quantised.vector(sentence)) @ _floats(floating.vector(sentence))
        assert agreement >= 0.97, sentence


def test_every_weight_matrix_is_integer_with_a_scale_per_channel(integer: Path) -> None:
    model = onnx.load(integer).graph
    products = [node for node in model.node if node.op_type == "MatMulInteger"]
    assert len(products) == 6 * 6
    sizes = {tensor.name: list(tensor.dims) for tensor in model.initializer}
    for product in products:
        name = product.input[1]
        scale = sizes[name.removesuffix("_quantized") + "_scale"]
        assert scale == [sizes[name][1]]


def test_a_change_of_the_model_is_a_change_of_its_scheme(integer: Path, built: Path) -> None:
    about = manifest.read(built)
    assert about is not None
    if about.built_with != graph.versions():
        pytest.skip(f"the installed model was built with {about.built_with}")
    assert sha256_of(integer) == about.model_sha256, "grow manifest.SCHEME, install again"


def test_masked_padding_does_not_change_a_vector(exact: Path, tokens: Tokens) -> None:
    session = onnxruntime.InferenceSession(str(exact), providers=["CPUExecutionProvider"])
    short, long = tokens.read(SENTENCES[1]), tokens.read(SENTENCES[5])
    assert short is not None
    assert long is not None
    padding = [0] * (len(long) - len(short))
    feeds = {
        "input_ids": np.array([short + padding, long]),
        "attention_mask": np.array([[1] * len(short) + padding, [1] * len(long)]),
    }
    (both,) = session.run(["embedding"], feeds)
    for row, sentence in zip(both, (SENTENCES[1], SENTENCES[5]), strict=True):
        np.testing.assert_allclose(
            row, _floats(Session(exact, tokens).vector(sentence)), rtol=0, atol=1e-5
        )


def test_known_sentences_have_the_similarity_the_model_card_shows(
    exact: Path, tokens: Tokens
) -> None:
    session = Session(exact, tokens)
    a, b, c = (
        _floats(session.vector(text))
        for text in (
            "The weather is lovely today.",
            "It's so sunny outside!",
            "He drove to the stadium.",
        )
    )
    # https://sbert.net/docs/quickstart.html, all-MiniLM-L6-v2 under PyTorch.
    assert float(a @ b) == pytest.approx(0.6660, abs=5e-4)
    assert float(a @ c) == pytest.approx(0.1046, abs=5e-4)
    assert float(b @ c) == pytest.approx(0.1411, abs=5e-4)


def test_wrong_weights_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graph.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
