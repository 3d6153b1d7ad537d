"""The trained networks as ONNX: built node by node, so that it needs no tracing and holds no external data, and compared
with torch on real rows before anybody gets it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from headwater.learning.deep.batches import attended
from headwater.learning.deep.inputs import NEVER
from headwater.learning.deep.model import (
    ATTENTION,
    ATTENTION_HEADS,
    DAY_S,
    TYPES,
    DeepNet,
    InputLayer,
    LightNet,
    TargetAttention,
)
from headwater.learning.deep.rows import RankingRows
from headwater.learning.gbdt import TrainingError
from headwater.ranking.deep import run_session, session

TOLERANCE = 1e-4
OPSET, IR = 17, 8

_GROUPS = 24  # that are compared, evenly spread over time
_ROWS = 64  # of a group

Run = Callable[[dict[str, npt.NDArray[np.generic]]], npt.NDArray[np.float32]]


class Graph:
    """An ONNX graph under construction: every call adds a node and gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Tensor | npt.NDArray[np.generic] | float) -> str:
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, layer: nn.Linear) -> str:
        product = self.add("MatMul", x, self.constant(layer.weight.detach().T))
        bias: Tensor | None = layer.bias  # torch's stubs do not say that a layer may have none
        return product if bias is None else self.add("Add", product, self.constant(bias))

    def product(self, columns: str, weight: Tensor, bias: Tensor) -> str:
        """``(channels, n)`` times the weights of a linear layer: ``(n, outputs)``."""
        return self.add("Gemm", columns, self.constant(weight.T), self.constant(bias), transA=1)

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def column(self, values: Tensor) -> str:
        """A number for each row of what it is combined with."""
        return self.constant(values.detach().reshape(-1, 1))

    def clip(self, x: str, low: float, high: float) -> str:
        return self.add("Clip", x, self.constant(low), self.constant(high))

    def cast(self, x: str) -> str:
        return self.add("Cast", x, to=TensorProto.FLOAT)

    def bytes_of(self, inputs: list[onnx.ValueInfoProto], output: str, heads: int) -> bytes:
        """The finished model; ``output`` is called ``logits``."""
        self.nodes.append(helper.make_node("Identity", [output], ["logits"]))
        out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", heads])
        graph = helper.make_graph(self.nodes, "ranker", inputs, [out], self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="headwater"
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def export_deep(net: DeepNet, rows: RankingRows) -> bytes:
    """The deep ranker as ONNX: ``features`` (n, d), and with attention ``candidates`` (n, e), ``recent`` (l, e), ``types`` (l),
    ``age_s`` (l) and ``there`` (l) → ``logits`` (n, h).

    Raises:
        TrainingError: on real rows it differs from torch by more than 1e-4.
    """
    net.eval()
    graph = Graph()
    channels = _inputs(graph, net.inputs)
    first, weight = _unscaled(net.first, net.inputs), net.inputs.size
    start = graph.product(channels, first.weight[:, :weight][:, _live(net.inputs)], first.bias)
    given = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(net.inputs.mean)])]
    if net.attention is not None:
        size = net.attention.query.in_features
        said = graph.add("Concat", *_attention(graph, net.attention), axis=1)
        start = graph.add("Gemm", said, graph.constant(first.weight[:, weight:].T), start)
        given += [
            helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["n", size]),
            helper.make_tensor_value_info("recent", TensorProto.FLOAT, ["l", size]),
            helper.make_tensor_value_info("types", TensorProto.INT64, ["l"]),
            helper.make_tensor_value_info("age_s", TensorProto.FLOAT, ["l"]),
            helper.make_tensor_value_info("there", TensorProto.FLOAT, ["l"]),
        ]
    crossed = start
    for down, up in zip(net.down, net.up, strict=True):
        assert isinstance(down, nn.Linear) and isinstance(up, nn.Linear)  # noqa: S101, PT018  (for the type checker)
        crossed = graph.add("Add", graph.add("Mul", start, graph.linear(graph.linear(crossed, down), up)), crossed)
    deep = graph.add("Relu", graph.linear(crossed, net.hidden))
    logits = graph.linear(graph.add("Concat", crossed, deep, axis=1), net.head)
    model = graph.bytes_of(given, logits, net.head.out_features)
    verify(model, net, rows)
    return model


def export_light(net: LightNet, rows: RankingRows) -> bytes:
    """The light ranker as ONNX: ``features`` (n, d) → ``logits`` (n, h). Raises like :func:`export_deep`."""
    net.eval()
    graph = Graph()
    unscaled = _unscaled(net.first, net.inputs)
    given = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(net.inputs.mean)])]
    first = graph.product(_inputs(graph, net.inputs), unscaled.weight[:, _live(net.inputs)], unscaled.bias)
    crossed = graph.add("Add", graph.add("Mul", first, graph.linear(graph.linear(first, net.down), net.up)), first)
    logits = graph.linear(graph.add("Concat", crossed, graph.add("Relu", first), axis=1), net.head)
    model = graph.bytes_of(given, logits, net.head.out_features)
    verify(model, net, rows)
    return model


def verify(model: bytes, net: DeepNet | LightNet, rows: RankingRows) -> float:
    """The largest difference between the ONNX model and torch on groups spread over ``rows``.

    Raises:
        TrainingError: it is more than 1e-4, or not a number.
    """
    opened = session(model, "the exported model")
    largest = 0.0
    groups = np.unique(np.linspace(0, len(rows.groups) - 1, _GROUPS).astype(np.int64))
    for group in groups.tolist():
        at = np.arange(rows.starts[group], rows.starts[group + 1])[:_ROWS]
        given: dict[str, npt.NDArray[np.generic]] = {"features": rows.features[at]}
        tensors = None
        if isinstance(net, DeepNet) and net.attention is not None and rows.histories is not None:
            tensors = attended(rows.histories, at, np.array([group]), torch.zeros(len(at), dtype=torch.long))
            names = ("candidates", "recent", "types", "age_s", "there")
            given |= {"candidates": tensors[0].numpy()}
            given |= {name: tensor[0].numpy() for name, tensor in zip(names[1:], tensors[1:5], strict=True)}
        with torch.no_grad():
            features = torch.from_numpy(rows.features[at])
            wanted = (net(features, tensors) if isinstance(net, DeepNet) else net(features)).numpy()
        largest = max(largest, float(np.abs(run_session(opened, given) - wanted).max()))
        if not largest <= TOLERANCE:
            raise TrainingError(
                f"The exported ranker differs from the trained one by {largest:.2g} (at most {TOLERANCE:g} is allowed) on rows of "
                f"group {group}. Nothing is published; look for columns with extreme values."
            )
    return largest


def _unscaled(layer: nn.Linear, inputs: InputLayer) -> nn.Linear:
    """The first layer for bent channels that are neither centred nor scaled: two operators less in every request."""
    columns = len(inputs.mean)
    folded = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        weight = layer.weight.clone()
        weight[:, :columns] /= inputs.scale
        folded.bias.copy_(layer.bias - weight[:, :columns] @ inputs.mean)
        folded.weight.copy_(weight)
    return folded


def _reached(layer: InputLayer) -> Tensor:
    """bool (pieces,): those that some value reaches."""
    return layer.low.flatten() < NEVER


def _live(layer: InputLayer) -> Tensor:
    """bool (channels,): all but the pieces that no value reaches, a fifth of the channels where columns are often 0."""
    live = torch.ones(layer.size, dtype=torch.bool)
    columns = len(layer.mean)
    live[columns : columns + layer.low.numel()] = _reached(layer)
    return live


def _inputs(graph: Graph, layer: InputLayer) -> str:
    """The channels ``(channels, n)`` that are :func:`_live`; those of :func:`_unscaled`."""
    # A column lies in one piece: then constants are spread along it, columns are chosen and put together as whole rows.
    # With rows in one piece, choosing 55 columns alone took ONNX Runtime a sixth of the time of the deep ranker.
    columns = graph.add("Transpose", "features", perm=[1, 0])
    gone = graph.add("IsNaN", columns)
    known = graph.add("Where", gone, graph.column(layer.fill), columns)
    bent = graph.add("Softsign", graph.add("Mul", known, graph.column(layer.unit)))
    parts = [bent]
    reached = _reached(layer).nonzero().flatten()
    if reached.numel():
        repeated = graph.add("Gather", known, graph.constant(reached % len(layer.mean)), axis=0)
        pieces = graph.add("Sub", repeated, graph.column(layer.low.flatten()[reached]))
        pieces = graph.add("Mul", pieces, graph.column(layer.slope.flatten()[reached]))
        parts.append(graph.clip(pieces, 0.0, 1.0))
    if layer.missing.numel():
        parts.append(graph.cast(graph.add("Gather", gone, graph.constant(layer.missing), axis=0)))
    if layer.single.numel():
        chosen = graph.add("Gather", known, graph.constant(layer.single), axis=0)
        parts.append(graph.cast(graph.add("Equal", chosen, graph.column(layer.values))))
    return graph.add("Concat", *parts, axis=0)


def _attention(graph: Graph, layer: TargetAttention) -> list[str]:
    each = ATTENTION // ATTENTION_HEADS
    slots = graph.add("Clip", "types", graph.constant(np.array(0)), graph.constant(np.array(TYPES - 1)))
    age = graph.add("Max", "age_s", graph.constant(0.0))
    age = graph.add("Unsqueeze", age, graph.ints(1))
    fading = [
        graph.add("Exp", graph.add("Div", graph.add("Neg", age), graph.constant(unit))) for unit in (3600.0, DAY_S)
    ]
    log_age = graph.add("Div", graph.add("Log", graph.add("Add", graph.constant(1.0), age)), graph.constant(10.0))
    said = graph.add(
        "Add", graph.add("Gather", graph.constant(layer.kind.weight), slots, axis=0),
        graph.linear(graph.add("Concat", log_age, *fading, axis=1), layer.age),
    )  # fmt: skip

    def split(rows: str, axes: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", rows, graph.ints(-1, ATTENTION_HEADS, each)), perm=axes)

    def beside(nothing: Tensor, layer: nn.Linear) -> str:
        there = graph.add("Add", graph.linear("recent", layer), said)
        return graph.add("Concat", graph.constant(nothing.detach().unsqueeze(0)), there, axis=0)

    query = graph.linear("candidates", layer.query)
    keys = split(beside(layer.nothing[0], layer.key), [1, 2, 0])
    values = split(beside(layer.nothing[1], layer.value), [1, 0, 2])
    hidden = graph.add("Mul", graph.add("Sub", graph.constant(1.0), "there"), graph.constant(-1e9))
    hidden = graph.add("Concat", graph.constant(np.zeros(1, np.float32)), hidden, axis=0)
    logits = graph.add("MatMul", split(query, [1, 0, 2]), keys)
    logits = graph.add("Add", graph.add("Div", logits, graph.constant(float(np.sqrt(each)))), hidden)
    found = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), values)
    found = graph.add("Reshape", graph.add("Transpose", found, perm=[1, 0, 2]), graph.ints(-1, ATTENTION))
    return [found, graph.add("Mul", query, found)]
