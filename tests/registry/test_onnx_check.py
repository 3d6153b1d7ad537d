"""An ONNX file is read as ONNX Runtime reads it, and refused when it leads out of itself or holds what is no weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headwater.registry.bundle import BundleError, ManifestFields, load_bundle, write_bundle
from headwater.registry.onnx_check import check_onnx
from tests.registry.onnx_models import WEIGHTS, conditional, external, linear, model

TENSOR = numpy_helper.from_array(WEIGHTS, "weights")
MATMUL = helper.make_node("MatMul", ["x", "weights"], ["y"])


def check(made: Any) -> None:
    check_onnx("model.onnx", made.SerializeToString())


def with_attribute(**attributes: Any) -> Any:
    return model([], [helper.make_node("Constant", [], ["weights"], **attributes), MATMUL])


def with_function(tensor: Any) -> Any:
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    body = [constant, helper.make_node("MatMul", ["a", "w"], ["b"])]
    function = helper.make_function("ours", "Ours", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    made = model([], [helper.make_node("Ours", ["x"], ["y"], domain="ours")], functions=[function])
    made.opset_import.append(helper.make_opsetid("ours", 1))
    return made


def sparse(tensor: Any) -> Any:
    indices = numpy_helper.from_array(np.arange(12, dtype=np.int64), "indices")
    values = onnx.TensorProto()
    values.CopyFrom(tensor)
    del values.dims[:]
    values.dims.append(12)
    return helper.make_sparse_tensor(values, indices, [4, 3])


def with_sparse(tensor: Any) -> Any:
    made = model([], [MATMUL])
    made.graph.sparse_initializer.append(sparse(tensor))
    return made


PLACES: dict[str, Callable[[Any], Any]] = {
    "initializer": lambda tensor: model([tensor], [MATMUL]),
    "attribute": lambda tensor: with_attribute(value=tensor),
    "subgraph": conditional,
    "function": with_function,
    "sparse": with_sparse,
    "sparse attribute": lambda tensor: with_attribute(sparse_value=sparse(tensor)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_whole_model_is_let_in_wherever_its_weights_stand(place: str) -> None:
    check(PLACES[place](TENSOR))


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function"])
def test_these_models_run(place: str) -> None:
    session = onnxruntime.InferenceSession(PLACES[place](TENSOR).SerializeToString())
    x = np.ones((2, 4), np.float32)
    assert session.run(None, {"x": x})[0] == pytest.approx(x @ WEIGHTS)


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_wherever_it_stands(place: str) -> None:
    with pytest.raises(BundleError, match="external data"):
        check(PLACES[place](external(TENSOR)))


def test_a_place_alone_or_a_location_alone_is_external_too() -> None:
    alone = onnx.TensorProto()
    alone.CopyFrom(TENSOR)
    alone.data_location = TensorProto.EXTERNAL
    placed = onnx.TensorProto()
    placed.CopyFrom(TENSOR)
    placed.external_data.add(key="location", value="weights.bin")
    for tensor in (alone, placed):
        with pytest.raises(BundleError, match="external data"):
            check(model([tensor], [MATMUL]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(place: str, bad: float) -> None:
    weights = WEIGHTS.copy()
    weights[2, 1] = bad
    with pytest.raises(BundleError, match=r"1 of 12 weights in .* NaN or infinite"):
        check(PLACES[place](numpy_helper.from_array(weights, "weights")))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
@pytest.mark.parametrize("raw", [True, False])
def test_they_are_found_in_every_type_and_form(kind: int, raw: bool) -> None:
    def tensor(values: list[float]) -> Any:
        if raw and kind == TensorProto.BFLOAT16:
            cells = (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
            return helper.make_tensor("weights", kind, [3], cells.tobytes(), raw=True)
        if raw:
            dtype = helper.tensor_dtype_to_np_dtype(kind)
            return helper.make_tensor("weights", kind, [3], np.array(values, dtype).tobytes(), raw=True)
        return helper.make_tensor("weights", kind, [3], values)

    check(model([tensor([1.0, -2.5, 0.0])], [MATMUL]))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(BundleError, match="1 of 3 weights in 'weights'"):
            check(model([tensor([1.0, bad, 0.0])], [MATMUL]))


def test_masks_and_bounds_may_be_infinite() -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    bound = np.array(np.inf, np.float32)
    check(model([TENSOR, numpy_helper.from_array(mask, "mask"), numpy_helper.from_array(bound, "most")], [MATMUL]))
    with pytest.raises(BundleError, match="NaN"):
        check(model([TENSOR, numpy_helper.from_array(np.array(np.nan, np.float32), "most")], [MATMUL]))
    check(with_attribute(value_floats=[1.0, float("inf")]))
    for bad in ({"value_float": float("nan")}, {"value_floats": [1.0, float("nan")]}):
        with pytest.raises(BundleError, match="attribute that is NaN"):
            check(with_attribute(**bad))


def test_foreign_operators_are_refused_and_those_of_the_model_itself_are_not() -> None:
    node = helper.make_node("MatMul", ["x", "weights"], ["y"], domain="evil.corp")
    with pytest.raises(BundleError, match=r"operators of 'evil\.corp'"):
        check(model([TENSOR], [node]))
    check(with_function(TENSOR))
    check(model([TENSOR], [helper.make_node("FusedMatMul", ["x", "weights"], ["y"], domain="com.microsoft")]))
    with pytest.raises(BundleError, match="leads out of the model"):
        check(model([], [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")]))


def test_every_truncation_is_refused_or_harmless() -> None:
    for made in (linear(), conditional(TENSOR)):
        data = made.SerializeToString()
        check_onnx("model.onnx", data)
        for size in range(len(data)):
            with pytest.raises(BundleError):  # the operator sets come last
                check_onnx("model.onnx", data[:size])


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    content = bytearray(conditional(TENSOR).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    refused_or_harmless(bytes(content))


@given(content=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused(content: bytes) -> None:
    refused_or_harmless(content)


def refused_or_harmless(content: bytes) -> None:
    """Anything but a :class:`BundleError` fails the test."""
    said = "model.onnx "
    try:
        check_onnx("model.onnx", content)
    except BundleError as error:
        said = str(error)
    assert said.startswith("model.onnx ")


def test_sizes_and_depths_have_bounds() -> None:
    huge = helper.make_tensor("weights", TensorProto.FLOAT, [0], b"", raw=True)
    huge.dims[:] = [1 << 20, 1 << 20]
    with pytest.raises(BundleError, match="values"):
        check(model([huge], [MATMUL]))
    short = helper.make_tensor("weights", TensorProto.FLOAT, [2], b"\0" * 8, raw=True)
    short.dims[0] = 3
    with pytest.raises(BundleError, match="8 bytes for 3 values"):
        check(model([short], [MATMUL]))
    nested = linear().graph
    for _ in range(15):
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        node = helper.make_node("If", ["flag"], ["y"], then_branch=nested)
        nested = helper.make_graph([node], "graph", [], [out])
    made = linear()
    made.graph.CopyFrom(nested)
    with pytest.raises(BundleError, match="nested deeper"):
        check(made)


def test_two_readings_of_one_file_are_none() -> None:
    data = linear().SerializeToString()
    with pytest.raises(BundleError, match="twice"):
        check_onnx("model.onnx", data + data)
    with pytest.raises(BundleError, match="own format"):
        check_onnx("model.onnx", data[:4] + b"ORTM" + data[8:])


def test_bundles_look_at_what_they_hold(tmp_path: Path, fields: Callable[..., ManifestFields]) -> None:
    path = write_bundle(tmp_path, fields(), {"tower.onnx": linear().SerializeToString()})
    assert load_bundle(path, plan_hash="plan-a").files["tower.onnx"] == linear().SerializeToString()
    with pytest.raises(BundleError, match="external data"):
        write_bundle(tmp_path, fields(1), {"tower.onnx": model([external(TENSOR)], [MATMUL]).SerializeToString()})
