"""The ONNX graph of all-MiniLM-L6-v2 (a BERT encoder, arXiv 1810.04805), straight from its weights.

    input_ids (b, s) int64, attention_mask (b, s) int64  ->  embedding (b, 384) float32, unit norm

Mean pooling over the mask, then L2, as sentence-transformers does it. Building takes about 600 MB
and the `onnx` package, which no proxy should keep, so it is a process of its own:

    python -m cachesvc.embed.graph WEIGHTS_DIR OUT_DIR
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cachesvc.embed import manifest, weights
from cachesvc.embed.disk import appearing, sha256_of
from cachesvc.embed.runtime import onnxruntime
from cachesvc.embed.session import Session
from cachesvc.embed.tokens import Tokens
from cachesvc.errors import CacheError, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[Any]]

OPSET = 17
_IR_VERSION = 8  # what opset 17 came with
_PROBE = "My order from last week has not arrived yet. Where can I see when it will be delivered?"


class Shape(msgspec.Struct, frozen=True):
    """What `config.json` says of the encoder."""

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    layer_norm_eps: float


def read_shape(path: Path) -> Shape:
    return msgspec.json.decode(path.read_bytes(), type=Shape)


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The float32 tensors of a safetensors file, mapped, not read.

    Format: 8 bytes little-endian length, that many bytes of JSON, then the data
    (github.com/huggingface/safetensors).
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    return {
        name: data[slice(*tensor["data_offsets"])].view("<f4").reshape(tensor["shape"])
        for name, tensor in header.items()
        if tensor.get("dtype") == "F32"
    }


class _Nodes:
    """The graph as it grows. Every method adds nodes and returns the name of their result."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        result = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def constant(self, name: str, values: NDArray[Any]) -> str:
        if name not in self.constants:
            array = np.ascontiguousarray(values)
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def number(self, value: float) -> str:
        return self.constant(f"f{value!r}", np.array(value, dtype=np.float32))

    def indices(self, *values: int) -> str:
        return self.constant(f"i{values!r}", np.array(values, dtype=np.int64))

    def tensor(self, name: str) -> str:
        return self.constant(name, self._tensors[name])

    def dense(self, x: str, name: str) -> str:
        weight = self.constant(f"{name}.weight.T", self._tensors[f"{name}.weight"].T)
        return self.op("Add", self.op("MatMul", x, weight), self.tensor(f"{name}.bias"))

    def norm(self, x: str, name: str, epsilon: float) -> str:
        scale, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def gelu(self, x: str) -> str:
        """x/2 (1 + erf(x/√2)), exact (arXiv 1606.08415)."""
        erf = self.op("Erf", self.op("Div", x, self.number(math.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.number(0.5)), self._plus_one(erf))

    def _plus_one(self, x: str) -> str:
        return self.op("Add", x, self.number(1.0))


def _embeddings(g: _Nodes, shape: Shape) -> str:
    """(b, s) ids to (b, s, hidden). One text is all of token type 0, so that is no input."""
    words = g.op("Gather", g.tensor("embeddings.word_embeddings.weight"), "input_ids")
    length = g.op("Shape", "input_ids", start=1, end=2)
    table = g.tensor("embeddings.position_embeddings.weight")
    places = g.op("Slice", table, g.indices(0), length, g.indices(0))
    kinds = g.tensor("embeddings.token_type_embeddings.weight")
    kind = g.op("Slice", kinds, g.indices(0), g.indices(1), g.indices(0))
    summed = g.op("Add", g.op("Add", words, kind), places)
    return g.norm(summed, "embeddings.LayerNorm", shape.layer_norm_eps)


def _attention(g: _Nodes, x: str, bias: str, name: str, shape: Shape) -> str:
    head = shape.hidden_size // shape.num_attention_heads
    split = g.indices(0, 0, shape.num_attention_heads, head)

    def heads(part: str, order: list[int]) -> str:
        dense = g.dense(x, f"{name}.attention.self.{part}")
        return g.op("Transpose", g.op("Reshape", dense, split), perm=order)

    query, key = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])
    scores = g.op("Div", g.op("MatMul", query, key), g.number(math.sqrt(head)))
    weights = g.op("Softmax", g.op("Add", scores, bias), axis=-1)
    mixed = g.op("MatMul", weights, heads("value", [0, 2, 1, 3]))
    joined = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return g.op("Reshape", joined, g.indices(0, 0, shape.hidden_size))


def _layer(g: _Nodes, x: str, bias: str, name: str, shape: Shape) -> str:
    mixed = g.dense(_attention(g, x, bias, name, shape), f"{name}.attention.output.dense")
    x = g.norm(g.op("Add", mixed, x), f"{name}.attention.output.LayerNorm", shape.layer_norm_eps)
    wide = g.gelu(g.dense(x, f"{name}.intermediate.dense"))
    narrow = g.dense(wide, f"{name}.output.dense")
    return g.norm(g.op("Add", narrow, x), f"{name}.output.LayerNorm", shape.layer_norm_eps)


def _pool(g: _Nodes, x: str, mask: str) -> str:
    """Mean of the unmasked tokens, (b, s, h) and (b, s) to (b, h), then divided by its length."""
    wide = g.op("Unsqueeze", mask, g.indices(2))
    total = g.op("ReduceSum", g.op("Mul", x, wide), g.indices(1), keepdims=0)
    count = g.op("ReduceSum", wide, g.indices(1), keepdims=0)
    mean = g.op("Div", total, g.op("Max", count, g.number(1e-9)))
    length = g.op("ReduceL2", mean, axes=[1], keepdims=1)
    return g.op("Div", mean, g.op("Max", length, g.number(1e-12)))


def model(tensors: Tensors, shape: Shape) -> Any:
    """The float32 ONNX model of an encoder of `shape` with these weights."""
    g = _Nodes(tensors)
    mask = g.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = g.op("Sub", g.number(1.0), g.op("Unsqueeze", mask, g.indices(1, 2)))
    bias = g.op("Mul", hidden, g.number(float(np.finfo(np.float32).min)))
    x = _embeddings(g, shape)
    for layer in range(shape.num_hidden_layers):
        x = _layer(g, x, bias, f"encoder.layer.{layer}", shape)
    g.nodes.append(helper.make_node("Identity", [_pool(g, x, mask)], ["embedding"]))
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info(
        "embedding", TensorProto.FLOAT, ["batch", shape.hidden_size]
    )
    graph = helper.make_graph(
        g.nodes, "all-MiniLM-L6-v2", ids, [out], initializer=list(g.constants.values())
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)


def build(source: Path, target: Path) -> None:
    """From weights in `source` to a whole `target`: model-int8.onnx, tokenizer, manifest.json.

    Raises StartError and EmbedError. The caller is the only writer (`disk.one_writer`).
    """
    wrong = weights.fault(source)
    if wrong is not None:
        raise StartError(wrong)
    with appearing(target) as folder:
        shutil.copyfile(source / manifest.TOKENIZER, folder / manifest.TOKENIZER)
        exact = folder / "model-fp32.onnx"
        tensors = read_safetensors(source / "model.safetensors")
        onnx.save(model(tensors, read_shape(source / "config.json")), exact)
        quantise(exact, folder / manifest.MODEL)
        probe = Session(exact, Tokens(folder / manifest.TOKENIZER)).vector(_PROBE)
        exact.unlink()
        about = manifest.Manifest(
            scheme=manifest.SCHEME,
            space=manifest.SPACE,
            model_sha256=sha256_of(folder / manifest.MODEL),
            sources=weights.SHA256,
            built_with=versions(),
            probe_text=_PROBE,
            probe_vector=probe or b"",
        )
        manifest.write(folder, about)


def versions() -> dict[str, str]:
    """What the built file depends on besides the weights and this module."""
    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def quantise(exact: Path, integer: Path) -> None:
    """8-bit weights for every MatMul with a constant, one scale per channel."""
    # It loads the runtime by itself, so not before `runtime` has.
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        exact,
        integer,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        extra_options={"MatMulConstBOnly": True},
    )


def main(arguments: Sequence[str]) -> int:
    source, target = map(Path, arguments)
    try:
        build(source, target)
    except CacheError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    # The quantiser advises a pass over the graph that ours does not need.
    logging.disable(logging.WARNING)
    sys.exit(main(sys.argv[1:]))
