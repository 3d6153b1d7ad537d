"""ONNX models for tests: small ones that run, and ones that must not be opened."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


def linear(weights: np.ndarray = WEIGHTS, *, name: str = "weights") -> Any:
    """``y = x @ weights``."""
    return model([numpy_helper.from_array(weights, name)], [helper.make_node("MatMul", ["x", name], ["y"])])


def model(initializers: list[Any], nodes: list[Any], **more: Any) -> Any:
    """A model from float32[n, 4] to float32[n, ?]."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **more)
    made.ir_version = 9
    return made


def external(tensor: Any) -> Any:
    """``tensor`` with its values in a file beside the model."""
    outside = onnx.TensorProto()
    outside.CopyFrom(tensor)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="/etc/passwd")
    return outside


def conditional(inside: Any) -> Any:
    """A model whose node ``If`` has a branch with the initializer ``inside`` (float32[4, 3])."""

    def branch(name: str) -> Any:
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        tensor = onnx.TensorProto()
        tensor.CopyFrom(inside)
        tensor.name = f"{name}_w"
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"])], name, [], [out], [tensor]
        )

    flag = numpy_helper.from_array(np.array(True), "flag")
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    return model([flag], [node])
