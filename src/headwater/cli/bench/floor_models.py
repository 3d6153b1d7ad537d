"""The two models of the floor as ONNX, with drawn weights: frozen, see :mod:`headwater.cli.bench.floor`.

Shapes: L recent items, E size of a vector, W width, N candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

LENGTH, SIZE, BLOCKS, HEADS, INNER = 50, 64, 2, 2, 256
COLUMNS, WIDTH, CROSSES = 97, 128, 2
_OPSET, _IR, _SEED = 17, 8, 1


class _Graph:
    """An ONNX graph under construction: every call adds a node and gives the name of its output."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(_SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, array: npt.NDArray[np.generic]) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, inside: int, outside: int) -> str:
        weight = self._rng.standard_normal((inside, outside)).astype(np.float32) / np.float32(np.sqrt(inside))
        product = self.add("MatMul", x, self.constant(weight))
        return self.add("Add", product, self.constant(np.zeros(outside, np.float32)))

    def normed(self, x: str, size: int) -> str:
        ones, zeros = self.constant(np.ones(size, np.float32)), self.constant(np.zeros(size, np.float32))
        return self.add("LayerNormalization", x, ones, zeros, axis=-1)

    def model(self, given: tuple[str, list[int]], output: str, shape: list[int]) -> bytes:
        self._nodes.append(helper.make_node("Identity", [output], ["out"]))
        graph = helper.make_graph(
            self._nodes, "floor", [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)], self._constants,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        onnx.checker.check_model(made, full_check=True)
        return bytes(made.SerializeToString(deterministic=True))


def encoder() -> bytes:
    """A causal transformer, pre-norm, ReLU: ``recent`` float32[1, L, E] → ``out`` float32[1, E], the last place."""
    graph = _Graph()
    each = SIZE // HEADS
    split = graph.constant(np.array([1, LENGTH, HEADS, each]))
    joined = graph.constant(np.array([1, LENGTH, SIZE]))
    hidden = graph.constant(np.triu(np.full((LENGTH, LENGTH), -1e9, np.float32), 1))
    x = "recent"
    for _ in range(BLOCKS):
        normed = graph.normed(x, SIZE)
        query, key, value = (
            graph.add("Transpose", graph.add("Reshape", graph.linear(normed, SIZE, SIZE), split), perm=axes)
            for axes in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        logits = graph.add("Div", graph.add("MatMul", query, key), graph.number(float(np.sqrt(each))))
        weights = graph.add("Softmax", graph.add("Add", logits, hidden), axis=-1)
        found = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        x = graph.add("Add", x, graph.linear(graph.add("Reshape", found, joined), SIZE, SIZE))
        inner = graph.add("Relu", graph.linear(graph.normed(x, SIZE), SIZE, INNER))
        x = graph.add("Add", x, graph.linear(inner, INNER, SIZE))
    last = graph.add("Gather", graph.normed(x, SIZE), graph.constant(np.array(LENGTH - 1)), axis=1)
    return graph.model(("recent", [1, LENGTH, SIZE]), last, [1, SIZE])


def ranker(rows: int) -> bytes:
    """DCN-v2 with full crosses beside an MLP: ``rows`` float32[N, columns] → ``out`` float32[N, 1]."""
    graph = _Graph()
    start = crossed = graph.linear("rows", COLUMNS, WIDTH)
    for _ in range(CROSSES):
        crossed = graph.add("Add", graph.add("Mul", start, graph.linear(crossed, WIDTH, WIDTH)), crossed)
    deep = graph.add("Relu", graph.linear(start, WIDTH, WIDTH))
    deep = graph.add("Relu", graph.linear(deep, WIDTH, WIDTH // 2))
    logits = graph.linear(graph.add("Concat", crossed, deep, axis=1), WIDTH + WIDTH // 2, 1)
    return graph.model(("rows", [rows, COLUMNS]), graph.add("Sigmoid", logits), [rows, 1])
