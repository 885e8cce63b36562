"""Shapes and costs of hand-made files. Oracles: ONNX Runtime's own shapes, and counts done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import MeasureError
from autocompress.measure.graphs import Size, layer_of, read_graph, reads_past
from autocompress.runtimes import open_session


def save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], axes: list[str | int]) -> Path:
    """A file from float ``x`` of the given axes to float ``y``."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "made", [given], [result], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def test_shapes_that_depend_on_shapes_are_worked_out_and_cost_nothing(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["y"]),
    ]
    constants = {"first": np.array([0]), "rest": np.array([-1])}
    file = save(tmp_path / "a.onnx", nodes, constants, ["batch", "sequence", 4])
    graph = read_graph(file, Size(2, 3))
    expected = open_session(file, "onnxruntime", 1).run({"x": np.zeros((2, 3, 4), np.float32)})[0]
    assert tuple(graph.shape("y")) == expected.shape == (2, 12)
    assert [node.operator for node in graph.nodes] == ["Relu"]
    assert graph.nodes[0].held == ("x",)


def test_positions_that_are_looked_up_are_worked_out(tmp_path):
    """As BERT's token types are: fewer indices than data."""
    nodes = [
        helper.make_node("GatherElements", ["sizes", "which"], ["two"], axis=1),
        helper.make_node("Squeeze", ["two", "first"], ["wanted"]),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    constants = {"sizes": np.array([[2, 3, 4, 6]]), "which": np.array([[2, 1]]), "first": np.array([0])}
    file = save(tmp_path / "a.onnx", nodes, constants, ["batch", 12])
    expected = open_session(file, "onnxruntime", 1).run({"x": np.zeros((1, 12), np.float32)})[0]
    assert tuple(read_graph(file, Size(1, 3)).shape("y")) == expected.shape == (4, 3)


def test_a_weight_that_is_turned_and_scaled_is_read_as_it_is_stored(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["fc.weight_q", "scale"], ["float"]),
        helper.make_node("Transpose", ["float"], ["turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    constants = {"fc.weight_q": np.ones((3, 4), np.int8), "scale": np.array(0.5, np.float32)}
    graph = read_graph(save(tmp_path / "a.onnx", nodes, constants, [2, 4]), Size())
    weight = graph.constants["turned"]
    assert (weight.elements, weight.bits, weight.layer, weight.bytes) == (12, 8, "fc", 12)
    assert [node.operator for node in graph.nodes] == ["MatMul"]


def test_four_bit_operators_of_onnxruntime_have_shapes(tmp_path):
    nodes = [
        helper.make_node(
            "MatMulNBits",
            ["x", "fc.weight_q4", "fc.weight_scale"],
            ["y"],
            domain="com.microsoft",
            K=64,
            N=5,
            bits=4,
            block_size=32,
        )
    ]
    constants = {"fc.weight_q4": np.zeros((5, 2, 16), np.uint8), "fc.weight_scale": np.ones(10, np.float32)}
    file = save(tmp_path / "a.onnx", nodes, constants, ["batch", "sequence", 64])
    expected = open_session(file, "onnxruntime", 1).run({"x": np.zeros((1, 3, 64), np.float32)})[0]
    assert tuple(read_graph(file, Size(1, 3)).shape("y")) == expected.shape


def test_given_shapes_go_before_the_workload(tmp_path):
    file = save(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["batch", "sequence"])
    assert read_graph(file, Size(2, 9)).shape("y") == [2, 9]
    assert read_graph(file, Size(2, 9, shapes=(("x", (5, 6)),))).shape("y") == [5, 6]
    assert not reads_past(file)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.bert.encoder.layer.0.query.weight", "bert.encoder.layer.0.query"),
        ("model.model.layers.0.q_proj.weight", "model.layers.0.q_proj"),
        ("model.layers.0.q_proj.weight_q4", "model.layers.0.q_proj"),
        ("fc.0.weight_f16", "fc.0"),
        ("model.fc.bias", ""),
        ("onnx::MatMul_12", ""),
    ],
)
def test_a_constant_tells_its_layer(name, layer):
    assert layer_of(name) == layer


def test_an_open_axis_is_refused(tmp_path):
    file = save(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["batch", "sequence"])
    with pytest.raises(MeasureError, match=r"a\.onnx: input 'x' has the free axis 'sequence', but the profile's work"):
        read_graph(file, Size(1, None))


def test_a_strange_operator_is_refused(tmp_path):
    node = helper.make_node("FusedThing", ["x"], ["y"], name="odd", domain="com.microsoft")
    file = save(tmp_path / "a.onnx", [node], {}, [2, 4])
    with pytest.raises(MeasureError, match=r"FusedThing \('odd'\): an operator of com\.microsoft whose work is not"):
        read_graph(file, Size())


def test_an_output_that_depends_on_values_is_refused(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], ["found"]), helper.make_node("Cast", ["found"], ["y"], to=1)]
    with pytest.raises(MeasureError, match="the shape of its output 'found' cannot be told beforehand"):
        read_graph(save(tmp_path / "a.onnx", nodes, {}, [2, 4]), Size())


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(MeasureError, match=r"bad\.onnx: cannot be read as ONNX"):
        read_graph(tmp_path / "bad.onnx", Size())
