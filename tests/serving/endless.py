"""A deep ranker that stalls when it is told to: its ONNX graph holds a loop."""

from __future__ import annotations

import msgspec
from onnx import TensorProto, helper

from headwater.ranking.calibration import Calibration
from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, Description


def endless(columns: tuple[str, ...], column: str) -> dict[str, bytes]:
    """Files of a deep ranker that turns as often as the largest value in ``column`` says, and gives every row the score 1."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["x"], ["x_next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_next", TensorProto.FLOAT, None),
        ],
    )
    constants = [
        helper.make_tensor("at", TensorProto.INT64, [1], [columns.index(column)]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    nodes = [
        helper.make_node("Gather", ["features", "at"], ["first"], axis=1),
        helper.make_node("ReduceMax", ["first"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Shape", ["first"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["start"]),  # zeros
        helper.make_node("Loop", ["turns", "true", "start"], ["turned"], body=body),
        helper.make_node("Add", ["turned", "one"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(columns)])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    described = Description(
        objective="listwise", heads=("click",), value=(1.0,), calibration=(Calibration(),),
        light_calibration=(Calibration(),), columns=columns,
    )  # fmt: skip
    return {DEEP_FILE: made.SerializeToString(), DESCRIPTION_FILE: msgspec.json.encode(described)}
