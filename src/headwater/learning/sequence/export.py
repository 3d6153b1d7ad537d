"""The trained towers as ONNX, built operator by operator, and compared with torch before anything is published.

Two graphs: ``encoder`` takes vectors of recent items (1, L, D), type slots, gap slots (1, L) and an idle slot (1,) and
gives the user's vector (1, D); ``tower`` takes id vectors (n, D), content (n, c) and price (n, 1) and gives item vectors.
All weights are inside. The last layer of the encoder computes the last place only: nobody asks for the others.
"""

from __future__ import annotations

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

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Add a node; returns the name of its output (of the first one, ``name.1`` … being the others)."""
        name = f"{kind.lower()}{len(self.nodes)}"
        names = [name, *(f"{name}.{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return name

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def linear(self, x: str, layer: nn.Linear, scale: float = 1.0, rows: slice = slice(None)) -> str:
        made = self.op("MatMul", x, self.constant(scale * _of(layer.weight)[rows].T))
        return made if layer.bias is None else self.op("Add", made, self.constant(scale * _of(layer.bias)[rows]))

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
    x = graph.op("Mul", "vectors", graph.constant(np.array(encoder.scale, np.float32)))
    x = graph.op("Add", x, places)
    for table, slots in ((encoder.types, "types"), (encoder.gaps, "gaps")):
        x = graph.op("Add", x, graph.op("Gather", graph.constant(_of(table.weight)), slots))
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    for block in blocks:
        x = _block(graph, block, x, shape, length, last=block is blocks[-1])
    x = graph.op("Squeeze", x, graph.numbers(1))
    x = graph.op("Add", x, graph.op("Gather", graph.constant(_of(encoder.idle.weight)), "idle"))
    inputs = [
        helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [1, "L", shape.size]),
        helper.make_tensor_value_info("types", TensorProto.INT64, [1, "L"]),
        helper.make_tensor_value_info("gaps", TensorProto.INT64, [1, "L"]),
        helper.make_tensor_value_info("idle", TensorProto.INT64, [1]),
    ]
    return graph.finish("user", graph.norm(x, encoder.norm), inputs, [1, shape.size])


def _block(graph: _Graph, block: Block, x: str, shape: Shape, length: str, *, last: bool) -> str:
    """One layer; of the last one only the last place, which sees all before it and so needs no mask."""
    size, each = shape.size, shape.size // shape.heads
    normed = graph.norm(x, block.norm_a)

    def head(rows: slice, of: str, scale: float = 1.0, *, flip: bool = False) -> str:
        made = graph.op("Reshape", graph.linear(of, block.into_a, scale, rows), graph.numbers(0, -1, shape.heads, each))
        return graph.op("Transpose", made, perm=[0, 2, 3, 1] if flip else [0, 2, 1, 3])

    asking = normed
    if last:
        behind = graph.op("Slice", normed, graph.numbers(-1), graph.numbers(2**31), graph.numbers(1))
        x = graph.op("Slice", x, graph.numbers(-1), graph.numbers(2**31), graph.numbers(1))
        asking = behind
    query = head(slice(0, size), asking, each**-0.5)
    keys = head(slice(size, 2 * size), normed, flip=True)
    values = head(slice(2 * size, 3 * size), normed)
    scores = graph.op("MatMul", query, keys)
    if not last:
        later = np.triu(np.full((shape.length, shape.length), -np.inf, np.float32), 1)
        both = graph.op("Concat", length, length, axis=0)
        mask = graph.op("Slice", graph.constant(later), graph.numbers(0, 0), both, graph.numbers(0, 1))
        scores = graph.op("Add", scores, mask)
    attended = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), values)
    attended = graph.op("Transpose", attended, perm=[0, 2, 1, 3])
    attended = graph.linear(graph.op("Reshape", attended, graph.numbers(0, -1, size)), block.out_a)
    gate = graph.op("Sigmoid", graph.linear(asking, block.into_a, rows=slice(3 * size, 4 * size)))
    x = graph.op("Add", x, graph.op("Mul", gate, attended))
    normed = graph.norm(x, block.norm_f)
    opened = graph.linear(normed, block.into_f, rows=slice(0, block.inner))
    fed = graph.linear(normed, block.into_f, rows=slice(block.inner, 2 * block.inner))
    gate = graph.op("Sigmoid", graph.linear(normed, block.into_f, rows=slice(2 * block.inner, None)))
    fed = graph.op("Mul", graph.op("Mul", opened, graph.op("Sigmoid", opened)), fed)
    return graph.op("Add", x, graph.op("Mul", gate, graph.linear(fed, block.out_f)))


def _tower(model: TwoTower, shape: Shape) -> bytes:
    graph, tower = _Graph(), model.tower
    known = graph.linear(graph.op("Concat", "content", "price", axis=1), tower.into)
    known = graph.linear(graph.op("Mul", known, graph.op("Sigmoid", known)), tower.out)
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
