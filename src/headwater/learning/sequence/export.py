"""The trained towers as ONNX, built operator by operator, and compared with torch before anything is published.

Two graphs: ``encoder`` takes vectors of recent items (1, L, D), type slots, gap slots (1, L) and an idle slot (1,) and
gives the user's vector (1, D); ``tower`` takes id vectors (n, D), content (n, c) and price (n, 1) and gives item vectors.
All weights are inside. The last layer of the encoder computes the last place only: nobody asks for the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from headwater.learning.gbdt import TrainingError
from headwater.learning.sequence.model import Block, Encoder, TwoTower
from headwater.learning.sequence.warm import weight_files
from headwater.retrieval.sequence_inputs import ENCODER_FILE, GAP_SLOTS, IDLE_SLOTS, TOWER_FILE, Shape, price_input

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

TOLERANCE = 1e-4
_OPSET, _IR = 17, 9
_CHECKED_ITEMS = 256


class _Graph:
    """Nodes and weights of one graph, named as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def split(self, x: str, *sizes: int) -> list[str]:
        """Columns of ``x`` (n, sum of sizes), part by part."""
        names = [f"split{len(self.nodes)}.{k}" for k in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [x, self.numbers(*sizes)], names, axis=1))
        return names

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def linear(self, x: str, weight: Float32, bias: Float32 | None = None) -> str:
        """``x @ weight.T + bias`` of rows ``x`` (n, in)."""
        given = [x, self.constant(weight), *([] if bias is None else [self.constant(bias)])]
        return self.op("Gemm", *given, transB=1)

    def norm(self, x: str, layer: nn.LayerNorm) -> str:
        weight, bias = self.constant(_of(layer.weight)), self.constant(_of(layer.bias))
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)

    def finish(self, name: str, output: str, inputs: list[onnx.ValueInfoProto], shape: list[str | int]) -> bytes:
        self.nodes.append(helper.make_node("Identity", [output], [name]))
        made = helper.make_graph(
            self.nodes, name, inputs, [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)], self.weights
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data


def export(
    model: TwoTower, shape: Shape, items: Int64, event_types: tuple[str, ...], content: Float32, price: Float32
) -> dict[str, bytes]:
    """All files of a trained model, which is on the CPU.

    Raises:
        TrainingError: a weight is not finite, or ONNX Runtime differs from torch by more than 1e-4.
    """
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise TrainingError(
                f"Training ended with weights that are not finite ({name}). Lower models.sequence.learning_rate."
            )
    files = weight_files(model, shape, items, event_types)
    files[ENCODER_FILE], files[TOWER_FILE] = _encoder(model.encoder, shape), _tower(model, shape)
    _verify(model, shape, files, items, content, price)
    return files


def _encoder(encoder: Encoder, shape: Shape) -> bytes:
    graph = _Graph()
    length = graph.op("Shape", "types", start=1)  # (L,)
    places = graph.op(
        "Slice", graph.constant(_of(encoder.positions.weight)), graph.numbers(0), length, graph.numbers(0)
    )
    first = graph.numbers(0)
    x = graph.op("Mul", graph.op("Squeeze", "vectors", first), graph.constant(np.array(encoder.scale, np.float32)))
    x = graph.op("Add", x, places)
    for table, slots in ((encoder.types, "types"), (encoder.gaps, "gaps")):
        x = graph.op("Add", x, graph.op("Gather", graph.constant(_of(table.weight)), graph.op("Squeeze", slots, first)))
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    for block in blocks:
        x = _block(graph, block, x, shape, length, last=block is blocks[-1])
    x = graph.op("Add", x, graph.op("Gather", graph.constant(_of(encoder.idle.weight)), "idle"))
    inputs = [
        helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [1, "L", shape.size]),
        helper.make_tensor_value_info("types", TensorProto.INT64, [1, "L"]),
        helper.make_tensor_value_info("gaps", TensorProto.INT64, [1, "L"]),
        helper.make_tensor_value_info("idle", TensorProto.INT64, [1]),
    ]
    return graph.finish("user", graph.norm(x, encoder.norm), inputs, [1, shape.size])


def _block(graph: _Graph, block: Block, x: str, shape: Shape, length: str, *, last: bool) -> str:
    """One layer, (L, D) → (L, D); of the last one only the last place (1, D), which sees all before it and needs no mask."""
    size, each = shape.size, shape.size // shape.heads
    normed = graph.norm(x, block.norm_a)
    weight, bias = _of(block.into_a.weight).copy(), _of(block.into_a.bias).copy()
    weight[:size] *= each**-0.5
    bias[:size] *= each**-0.5
    if last:
        end = graph.numbers(-1), graph.numbers(2**31), graph.numbers(0)
        x, asking = graph.op("Slice", x, *end), graph.op("Slice", normed, *end)
        outer, inner = np.r_[0:size, 3 * size : 4 * size], slice(size, 3 * size)
        query, gate = graph.split(graph.linear(asking, weight[outer], bias[outer]), size, size)
        key, value = graph.split(graph.linear(normed, weight[inner], bias[inner]), size, size)
    else:
        query, key, value, gate = graph.split(graph.linear(normed, weight, bias), size, size, size, size)

    def heads(part: str, *order: int) -> str:
        return graph.op("Transpose", graph.op("Reshape", part, graph.numbers(-1, shape.heads, each)), perm=list(order))

    scores = graph.op("MatMul", heads(query, 1, 0, 2), heads(key, 1, 2, 0))
    if not last:
        later = np.triu(np.full((shape.length, shape.length), -np.inf, np.float32), 1)
        both = graph.op("Concat", length, length, axis=0)
        mask = graph.op("Slice", graph.constant(later), graph.numbers(0, 0), both, graph.numbers(0, 1))
        scores = graph.op("Add", scores, mask)
    attended = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), heads(value, 1, 0, 2))
    attended = graph.op("Reshape", graph.op("Transpose", attended, perm=[1, 0, 2]), graph.numbers(-1, size))
    attended = graph.linear(attended, _of(block.out_a.weight), _of(block.out_a.bias))
    x = graph.op("Add", x, graph.op("Mul", graph.op("Sigmoid", gate), attended))
    fed = graph.linear(graph.norm(x, block.norm_f), _of(block.into_f.weight), _of(block.into_f.bias))
    opened, fed, gate = graph.split(fed, block.inner, block.inner, size)
    fed = graph.op("Mul", graph.op("Mul", opened, graph.op("Sigmoid", opened)), fed)
    fed = graph.linear(fed, _of(block.out_f.weight), _of(block.out_f.bias))
    return graph.op("Add", x, graph.op("Mul", graph.op("Sigmoid", gate), fed))


def _tower(model: TwoTower, shape: Shape) -> bytes:
    graph, tower = _Graph(), model.tower
    known = graph.linear(graph.op("Concat", "content", "price", axis=1), _of(tower.into.weight), _of(tower.into.bias))
    known = graph.linear(graph.op("Mul", known, graph.op("Sigmoid", known)), _of(tower.out.weight))
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.FLOAT, ["n", shape.size]),
        helper.make_tensor_value_info("content", TensorProto.FLOAT, ["n", shape.content]),
        helper.make_tensor_value_info("price", TensorProto.FLOAT, ["n", 1]),
    ]
    return graph.finish("items", graph.op("Add", "ids", known), inputs, ["n", shape.size])


def _verify(
    model: TwoTower, shape: Shape, files: dict[str, bytes], items: Int64, content: Float32, price: Float32
) -> None:
    """Some items and sequences of several lengths through both; deviations are taken relative to the largest number."""
    random = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    tower, encoder = (
        onnxruntime.InferenceSession(files[name], options, providers=["CPUExecutionProvider"])
        for name in (TOWER_FILE, ENCODER_FILE)
    )
    rows = random.integers(0, len(items), _CHECKED_ITEMS)
    there = items[rows] < len(content)
    rows = rows[there] if there.any() else rows[:0]
    ids = _of(model.ids)[np.append(rows, len(items))]
    known = content[np.append(items[rows], 0)]
    paid = price_input(price[np.append(items[rows], 0)])
    with torch.inference_mode():
        vectors = model.tower(torch.from_numpy(ids), torch.from_numpy(known), torch.from_numpy(paid)).numpy()
    (given,) = tower.run(None, {"ids": ids, "content": known, "price": paid})
    _compare("item tower", given, vectors)
    for length in sorted({1, min(2, shape.length), shape.length // 2 or 1, shape.length}):
        asked = {
            "vectors": vectors[random.integers(0, len(vectors), (1, length))],
            "types": random.integers(0, 2, (1, length)),
            "gaps": random.integers(0, GAP_SLOTS, (1, length)),
            "idle": random.integers(0, IDLE_SLOTS, 1),
        }
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value) for name, value in asked.items()}
            tensors["idle"] = tensors["idle"][:, None].expand(1, length)
            wanted = model.encoder(**tensors)[:, -1].numpy()
        (given,) = encoder.run(None, asked)
        _compare(f"encoder of {length} events", given, wanted)


def _compare(what: str, given: Float32, wanted: Float32) -> None:
    worst = float(np.abs(given - wanted).max() / max(1.0, float(np.abs(wanted).max())))
    if not worst <= TOLERANCE:
        raise TrainingError(
            f"The exported {what} differs from the trained one by {worst:.1e} (at most {TOLERANCE:.0e} is allowed), so it "
            "is not published. Train again; if it happens again, report it with the versions of torch and onnxruntime."
        )


def _of(weight: torch.Tensor) -> Float32:
    made: Float32 = weight.detach().numpy()
    return made
