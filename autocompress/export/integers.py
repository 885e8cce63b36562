"""Puts integer codes into an exported float graph, where runtimes turn them into integer kernels.

Where each node stands is what decides whether a runtime fuses it:

- static int8: one unsigned 8-bit Q/DQ pair on the input, shared by every layer that reads the same tensor with
  the same range; a signed 8-bit weight behind a per-channel DQ; none on the output; a float bias behind MatMul,
  an int32 one inside Gemm and Conv.
- dynamic int8: DynamicQuantizeLinear, shared likewise, then MatMulInteger and one scaling.
- 4-bit weights: MatMulNBits and GatherBlockQuantized, ONNX Runtime's own operators, which OpenVINO reads too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from autocompress.compress.quantize import Codes
from autocompress.errors import ExportError
from autocompress.plan import INT4_GROUP

MICROSOFT = "com.microsoft"


@dataclass
class _Graph:
    """The graph under construction: new nodes in order, initializers by name, and pairs already made."""

    initializers: dict[str, onnx.TensorProto]
    producers: dict[str, NodeProto]
    weight_of: dict[str, str]
    nodes: list[NodeProto] = field(default_factory=list)
    shared: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0] + "_node", **attributes))
        return outputs[0]

    def array(self, name: str) -> NDArray[Any]:
        """A constant's value; the exporter puts equal constants behind one Identity."""
        while name not in self.initializers and self.producers[name].op_type == "Identity":
            name = self.producers[name].input[0]
        value: NDArray[Any] = numpy_helper.to_array(self.initializers[name])
        return value


def insert_codes(model: onnx.ModelProto, codes: Mapping[str, Codes], prefix: str = "model.") -> onnx.ModelProto:
    """A graph whose layers in `codes` (by module name) hold integers; the input graph is not edited.

    Raises:
        ExportError: a layer's weight is not found where its kind keeps it.
    """
    if not codes:
        return model
    weights = {f"{prefix}{name}.weight": name for name in codes}
    graph = _Graph(
        initializers={item.name: item for item in model.graph.initializer},
        producers={output: node for node in model.graph.node for output in node.output},
        weight_of={},
    )
    for node in model.graph.node:
        for name in node.input:
            if name in weights and node.op_type == "Transpose":
                graph.weight_of[node.output[0]] = name
            elif name in weights:
                graph.weight_of[name] = name
    done = set()
    for node in model.graph.node:
        if node.op_type in ("Transpose", "Identity") and (
            node.output[0] in graph.weight_of or node.output[0] in weights
        ):
            continue  # the layer that it leads to gets its integers in the right form
        weight = next((graph.weight_of[name] for name in node.input if name in graph.weight_of), None)
        if weight is None or node.op_type == "Identity":
            graph.nodes.append(node)
            continue
        _replace(graph, node, weights[weight], codes[weights[weight]])
        done.add(weights[weight])
    missing = sorted(set(codes) - done)
    if missing:
        raise ExportError(f"the exported graph holds no weight of layer {missing[0]!r}, so it cannot take integers")
    return _assemble(model, graph)


def _assemble(model: onnx.ModelProto, graph: _Graph) -> onnx.ModelProto:
    used = {name for node in graph.nodes for name in node.input}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(graph.nodes)
    del result.graph.initializer[:]
    result.graph.initializer.extend(item for name, item in graph.initializers.items() if name in used)
    if not any(item.domain == MICROSOFT for item in result.opset_import):
        result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return result


def _replace(graph: _Graph, node: NodeProto, name: str, codes: Codes) -> None:
    if node.op_type == "Gather":
        _embedding(graph, node, name, codes)
    elif node.op_type == "Conv":
        _static_conv(graph, node, name, codes)
    elif node.op_type in ("MatMul", "Gemm") and codes.precision in _LINEAR:
        _LINEAR[codes.precision](graph, node, name, codes)
    else:
        raise ExportError(
            f"layer {name!r} became {node.op_type} in the exported graph, which cannot take {codes.precision}"
        )


def _quantized_input(graph: _Graph, source: str, codes: Codes) -> str:
    """The input sent through unsigned 8 bits; one pair per tensor and range."""
    key = ("static", source, codes.input_scale, codes.input_zero)
    if key not in graph.shared:
        stem = f"{source}_u8_{len(graph.shared)}"
        scale = graph.constant(f"{stem}_scale", np.array(codes.input_scale, dtype=np.float32))
        zero = graph.constant(f"{stem}_zero", np.array(codes.input_zero, dtype=np.uint8))
        quantized = graph.add("QuantizeLinear", [source, scale, zero], [f"{stem}_q"])
        graph.shared[key] = (graph.add("DequantizeLinear", [quantized, scale, zero], [f"{stem}_dq"]),)
    return graph.shared[key][0]


def _weight(graph: _Graph, name: str, values: NDArray[Any], scales: NDArray[Any], axis: int) -> str:
    """A signed 8-bit weight behind its per-channel DequantizeLinear; one for all calls of a layer."""
    key = ("weight", name, axis)
    if key in graph.shared:
        return graph.shared[key][0]
    data = graph.constant(f"{name}.weight_q", values)
    scale = graph.constant(f"{name}.weight_scale", scales)
    zero = graph.constant(f"{name}.weight_zero", np.zeros(scales.shape, dtype=np.int8))
    graph.shared[key] = (graph.add("DequantizeLinear", [data, scale, zero], [f"{name}.weight_dq_{axis}"], axis=axis),)
    return graph.shared[key][0]


def _int32_bias(graph: _Graph, name: str, bias: str, codes: Codes) -> str:
    """A bias in the accumulator's own integers, as fused Gemm and Conv kernels want it."""
    key = ("bias", name)
    if key in graph.shared:
        return graph.shared[key][0]
    scales = codes.scales.numpy().astype(np.float32) * np.float32(codes.input_scale)
    rounded = np.clip(np.round(graph.array(bias).astype(np.float64) / scales), -(2**31), 2**31 - 1).astype(np.int32)
    data = graph.constant(f"{name}.bias_q", rounded)
    scale = graph.constant(f"{name}.bias_scale", scales)
    zero = graph.constant(f"{name}.bias_zero", np.zeros(scales.shape, dtype=np.int32))
    graph.shared[key] = (graph.add("DequantizeLinear", [data, scale, zero], [f"{name}.bias_dq"], axis=0),)
    return graph.shared[key][0]


def _static_linear(graph: _Graph, node: NodeProto, name: str, codes: Codes) -> None:
    source = _quantized_input(graph, node.input[0], codes)
    values, scales = codes.values.numpy(), codes.scales.numpy()
    weight = _weight(graph, name, values.T, scales, axis=1)
    if node.op_type == "MatMul":
        graph.add("MatMul", [source, weight], [node.output[0]])
        return
    inputs = [source, weight]
    if len(node.input) > 2:
        inputs.append(_int32_bias(graph, name, node.input[2], codes))
    graph.add("Gemm", inputs, [node.output[0]])


def _static_conv(graph: _Graph, node: NodeProto, name: str, codes: Codes) -> None:
    source = _quantized_input(graph, node.input[0], codes)
    inputs = [source, _weight(graph, name, codes.values.numpy(), codes.scales.numpy(), axis=0)]
    if len(node.input) > 2:
        inputs.append(_int32_bias(graph, name, node.input[2], codes))
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    graph.add("Conv", inputs, [node.output[0]], **attributes)


def _with_bias(graph: _Graph, node: NodeProto, name: str, product: str) -> None:
    """Give the product the name that the graph expects, through the bias that a Gemm carried inside."""
    if node.op_type == "Gemm" and len(node.input) > 2:
        graph.add("Add", [product, node.input[2]], [node.output[0]])
    else:
        graph.add("Identity", [product], [node.output[0]])


def _dynamic_linear(graph: _Graph, node: NodeProto, name: str, codes: Codes) -> None:
    key = ("dynamic", node.input[0])
    if key not in graph.shared:
        pair = f"{node.input[0]}_dyn_{len(graph.shared)}"
        outputs = (f"{pair}_q", f"{pair}_scale", f"{pair}_zero")
        graph.add("DynamicQuantizeLinear", [node.input[0]], list(outputs))
        graph.shared[key] = outputs
    quantized, scale, zero = graph.shared[key]
    stem = node.output[0]
    weight = graph.constant(f"{name}.weight_q", codes.values.numpy().T)
    weight_zero = graph.constant(f"{name}.weight_zero", np.zeros(len(codes.scales), dtype=np.int8))
    weight_scale = graph.constant(f"{name}.weight_scale", codes.scales.numpy())
    total = graph.add("MatMulInteger", [quantized, weight, zero, weight_zero], [f"{stem}_int32"])
    as_float = graph.add("Cast", [total], [f"{stem}_float"], to=onnx.TensorProto.FLOAT)
    scales = graph.add("Mul", [scale, weight_scale], [f"{stem}_scales"])
    _with_bias(graph, node, name, graph.add("Mul", [as_float, scales], [f"{stem}_scaled"]))


def pack_four_bits(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pairs of codes in [-8, 7] along the last axis as bytes, first code in the low half, offset by 8."""
    offset = (values.astype(np.int16) + 8).astype(np.uint8)
    return (offset[..., 0::2] | (offset[..., 1::2] << 4)).astype(np.uint8)


def _blocks(codes: Codes) -> NDArray[np.int8]:
    """Codes ``(rows, groups, INT4_GROUP)``, the last group filled up with zeros."""
    values = codes.values.numpy()
    groups = codes.scales.shape[1]
    padded = np.zeros((values.shape[0], groups * INT4_GROUP), dtype=np.int8)
    padded[:, : values.shape[1]] = values
    return padded.reshape(values.shape[0], groups, INT4_GROUP)


def _four_bit_linear(graph: _Graph, node: NodeProto, name: str, codes: Codes) -> None:
    rows, columns = codes.values.shape
    weight = graph.constant(f"{name}.weight_q4", pack_four_bits(_blocks(codes)))
    scales = graph.constant(f"{name}.weight_scale", codes.scales.numpy().reshape(-1))
    product = graph.add(
        "MatMulNBits",
        [node.input[0], weight, scales],
        [f"{node.output[0]}_product"],
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=4,
        block_size=INT4_GROUP,
        accuracy_level=4,
    )
    _with_bias(graph, node, name, product)


def _embedding(graph: _Graph, node: NodeProto, name: str, codes: Codes) -> None:
    if codes.precision == "int4-weights":
        if codes.values.shape[1] % INT4_GROUP:
            raise ExportError(f"layer {name!r}: its rows of {codes.values.shape[1]} are no multiple of {INT4_GROUP}")
        blocks = _blocks(codes)
        data = graph.constant(f"{name}.weight_q4", pack_four_bits(blocks.reshape(blocks.shape[0], -1)))
        scales = graph.constant(f"{name}.weight_scale", codes.scales.numpy())
        graph.add(
            "GatherBlockQuantized",
            [data, node.input[1], scales],
            [node.output[0]],
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=INT4_GROUP,
            bits=4,
        )
        return
    stem = node.output[0]
    data = graph.constant(f"{name}.weight_q", codes.values.numpy())
    scales = graph.constant(f"{name}.weight_scale", codes.scales.numpy().reshape(-1, 1))
    rows = graph.add("Gather", [data, node.input[1]], [f"{stem}_rows"], axis=0)
    as_float = graph.add("Cast", [rows], [f"{stem}_float"], to=onnx.TensorProto.FLOAT)
    row_scales = graph.add("Gather", [scales, node.input[1]], [f"{stem}_scales"], axis=0)
    graph.add("Mul", [as_float, row_scales], [node.output[0]])


_LINEAR = {"int8": _static_linear, "int8-dynamic": _dynamic_linear, "int4-weights": _four_bit_linear}
