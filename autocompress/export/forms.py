"""The nodes that compute one layer from its integers, per operator and precision.

Where each node stands is what decides whether a runtime fuses it:

- static int8: one unsigned 8-bit Q/DQ pair on the input, shared by every layer that reads the same tensor with
  the same steps, behind a Clip where there are fewer than 256; a signed 8-bit weight behind its DQ. None on the output
  of a linear. On a convolution's output one, behind the ReLU if that alone follows: without it ONNX Runtime computes
  in float. A shortcut around convolutions starts at the integers that they read, and is cut and padded as integers. A
  float bias behind MatMul, an int32 one inside Gemm and Conv.
- dynamic int8: DynamicQuantizeLinear, shared likewise, then MatMulInteger and one scaling.
- 4-bit weights: MatMulNBits and GatherBlockQuantized, ONNX Runtime's own operators, which OpenVINO reads too.
- fp16: half-precision constants behind a Cast; processors compute in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from autocompress.compressing.codes import Codes, Steps
from autocompress.errors import ExportError
from autocompress.export.graph import MICROSOFT, Graph
from autocompress.plan import INT4_GROUP

Form = Callable[[Graph, NodeProto, str, Codes], None]


def half(graph: Graph, weight: str, name: str, codes: Codes) -> None:
    """The weight's name becomes that of its half-precision value, cast to float."""
    data = graph.constant(f"{name}.weight_f16", codes.values.numpy())
    graph.initializers.pop(weight, None)
    graph.add("Cast", [data], [weight], to=onnx.TensorProto.FLOAT)


def _per_channel(value: NDArray[Any]) -> NDArray[Any]:
    """One value per channel, or a scalar for the whole tensor."""
    return value.reshape(()) if value.shape == (1,) else value


def _scales(codes: Codes) -> NDArray[Any]:
    return _per_channel(codes.scales.numpy())


def _zeros(codes: Codes) -> NDArray[Any]:
    if codes.zeros is None:
        return np.zeros(_scales(codes).shape, dtype=np.int8)
    return _per_channel(codes.zeros.numpy())


def _pair(graph: Graph, source: str, steps: Steps, output: str | None = None) -> str:
    """Values sent through unsigned 8 bits, called `output` if given."""
    stem = f"{source}_u8_{len(graph.shared)}"
    if steps.levels < 256:
        low = graph.constant(f"{stem}_low", np.array(steps.low, dtype=np.float32))
        high = graph.constant(f"{stem}_high", np.array(steps.high, dtype=np.float32))
        source = graph.add("Clip", [source, low, high], [f"{stem}_clipped"])
    scale = graph.constant(f"{stem}_scale", np.array(steps.scale, dtype=np.float32))
    zero = graph.constant(f"{stem}_zero", np.array(steps.zero, dtype=np.uint8))
    quantized = graph.add("QuantizeLinear", [source, scale, zero], [f"{stem}_q"])
    return _dequantized(graph, (quantized, scale, zero), output or f"{stem}_dq")


def _dequantized(graph: Graph, integers: tuple[str, str, str], output: str) -> str:
    graph.integers[output] = integers
    return graph.add("DequantizeLinear", list(integers), [output])


def _quantized_input(graph: Graph, source: str, steps: Steps | None) -> str:
    """The input sent through its quantizer; one pair per tensor and steps."""
    assert steps is not None
    key = ("static", source, steps)
    if key not in graph.shared:
        graph.shared[key] = (_pair(graph, source, steps),)
    return graph.shared[key][0]


def _weight(graph: Graph, name: str, codes: Codes, values: NDArray[Any], axis: int) -> str:
    """A signed 8-bit weight behind its DequantizeLinear; one for all calls of a layer."""
    key = ("weight", name, axis)
    if key not in graph.shared:
        data = graph.constant(f"{name}.weight_q", values)
        scale = graph.constant(f"{name}.weight_scale", _scales(codes))
        zero = graph.constant(f"{name}.weight_zero", _zeros(codes))
        along = {"axis": axis} if _scales(codes).shape else {}
        output = f"{name}.weight_dq_{axis}"
        graph.shared[key] = (graph.add("DequantizeLinear", [data, scale, zero], [output], **along),)
    return graph.shared[key][0]


def _int32_bias(graph: Graph, name: str, bias: str, codes: Codes) -> str:
    """A bias in the accumulator's own integers, as fused Gemm and Conv kernels want it."""
    key = ("bias", name)
    if key not in graph.shared:
        assert codes.input is not None
        scales = np.asarray(_scales(codes).astype(np.float32) * np.float32(codes.input.scale))
        rounded = np.clip(np.round(graph.array(bias).astype(np.float64) / scales), -(2**31), 2**31 - 1)
        data = graph.constant(f"{name}.bias_q", rounded.astype(np.int32))
        scale = graph.constant(f"{name}.bias_scale", scales)
        zero = graph.constant(f"{name}.bias_zero", np.zeros(scales.shape, dtype=np.int32))
        along = {"axis": 0} if scales.shape else {}
        graph.shared[key] = (graph.add("DequantizeLinear", [data, scale, zero], [f"{name}.bias_dq"], **along),)
    return graph.shared[key][0]


def _static_linear(graph: Graph, node: NodeProto, name: str, codes: Codes) -> None:
    source = _quantized_input(graph, node.input[0], codes.input)
    inputs = [source, _weight(graph, name, codes, codes.values.numpy().T, axis=1)]
    if node.op_type == "Gemm" and len(node.input) > 2:
        inputs.append(_int32_bias(graph, name, node.input[2], codes))
    graph.add(node.op_type, inputs, [node.output[0]])


def _static_conv(graph: Graph, node: NodeProto, name: str, codes: Codes) -> None:
    source = _quantized_input(graph, node.input[0], codes.input)
    inputs = [source, _weight(graph, name, codes, codes.values.numpy(), axis=0)]
    if len(node.input) > 2:
        inputs.append(_int32_bias(graph, name, node.input[2], codes))
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    graph.add("Conv", inputs, [node.output[0]], **attributes)
    if codes.output is not None:
        graph.rounded[end(graph, node.output[0])] = codes.output


def end(graph: Graph, output: str) -> str:
    """A convolution's output, or that of the ReLU that alone reads it: an integer kernel rectifies for nothing."""
    follower = graph.reader(output)
    return str(follower.output[0]) if follower is not None and follower.op_type == "Relu" else output


def round_behind(graph: Graph, node: NodeProto) -> None:
    """Put the quantizer behind the node that was just added, if its output has one to come."""
    output = node.output[0]
    steps = graph.rounded.get(output)
    if steps is not None:
        last = NodeProto()
        last.CopyFrom(graph.nodes[-1])
        last.output[0] = f"{output}_float"
        last.name = f"{output}_float_node"
        graph.nodes[-1] = last
        graph.shared["static", output, steps] = (_pair(graph, last.output[0], steps, output),)


def read_rounded(graph: Graph, node: NodeProto, steps: Mapping[str, Steps]) -> None:
    """Add a node that reads those of its inputs that have steps through their quantizers."""
    copied = NodeProto()
    copied.CopyFrom(node)
    for place, name in enumerate(node.input):
        if name in steps:
            copied.input[place] = _quantized_input(graph, name, steps[name])
    graph.nodes.append(copied)


def moves(node: NodeProto) -> bool:
    """Whether a node only chooses values, or puts zeros around them: integers can take the same way."""
    if node.op_type == "Pad":
        modes = [item.s for item in node.attribute if item.name == "mode"]
        return modes in ([], [b"constant"]) and not any(node.input[2:])
    return bool(node.op_type == "Slice")


def move_rounded(graph: Graph, node: NodeProto, steps: Mapping[str, Steps]) -> None:
    """Add a node that moves values: as integers, where its input has them or has steps."""
    source = str(node.input[0])
    if source in steps:
        source = _quantized_input(graph, source, steps[source])
    if source not in graph.integers:
        graph.nodes.append(node)
        return
    integers, scale, zero = graph.integers[source]
    output = str(node.output[0])
    moved = NodeProto()
    moved.CopyFrom(node)
    moved.input[0], moved.output[0] = integers, f"{output}_q"
    if node.op_type == "Pad":
        moved.input[2:] = [zero]
    graph.nodes.append(moved)
    graph.integers[output] = (moved.output[0], scale, zero)
    follower = graph.reader(output)
    if follower is None or follower.input[0] != output or not moves(follower):
        _dequantized(graph, graph.integers[output], output)


def _with_bias(graph: Graph, node: NodeProto, product: str) -> None:
    """Give the product the name that the graph expects, through the bias that a Gemm carried inside."""
    if node.op_type == "Gemm" and len(node.input) > 2:
        graph.add("Add", [product, node.input[2]], [node.output[0]])
    else:
        graph.add("Identity", [product], [node.output[0]])


def _dynamic_linear(graph: Graph, node: NodeProto, name: str, codes: Codes) -> None:
    key = ("dynamic", node.input[0])
    if key not in graph.shared:
        pair = f"{node.input[0]}_dyn_{len(graph.shared)}"
        outputs = (f"{pair}_q", f"{pair}_scale", f"{pair}_zero")
        graph.add("DynamicQuantizeLinear", [node.input[0]], list(outputs))
        graph.shared[key] = outputs
    quantized, scale, zero = graph.shared[key]
    stem = node.output[0]
    weight = graph.constant(f"{name}.weight_q", codes.values.numpy().T)
    weight_zero = graph.constant(f"{name}.weight_zero", _zeros(codes))
    weight_scale = graph.constant(f"{name}.weight_scale", _scales(codes))
    total = graph.add("MatMulInteger", [quantized, weight, zero, weight_zero], [f"{stem}_int32"])
    as_float = graph.add("Cast", [total], [f"{stem}_float"], to=onnx.TensorProto.FLOAT)
    scales = graph.add("Mul", [scale, weight_scale], [f"{stem}_scales"])
    _with_bias(graph, node, graph.add("Mul", [as_float, scales], [f"{stem}_scaled"]))


def pack_four_bits(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pairs of codes in [-8, 7] along the last axis as bytes, first code in the low half, offset by 8.

    An odd number of codes is filled up with a 0.
    """
    offset = (values.astype(np.int16) + 8).astype(np.uint8)
    if offset.shape[-1] % 2:
        offset = np.concatenate([offset, np.full((*offset.shape[:-1], 1), 8, dtype=np.uint8)], axis=-1)
    return (offset[..., 0::2] | (offset[..., 1::2] << 4)).astype(np.uint8)


def unpack_four_bits(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """The first `count` codes along the last axis of what `pack_four_bits` made."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return (halves[..., :count].astype(np.int16) - 8).astype(np.int8)


def _blocks(codes: Codes) -> NDArray[np.int8]:
    """Codes ``(rows, groups, INT4_GROUP)``, the last group filled up with zeros."""
    values = codes.values.numpy()
    groups = codes.scales.shape[1]
    padded = np.zeros((values.shape[0], groups * INT4_GROUP), dtype=np.int8)
    padded[:, : values.shape[1]] = values
    return padded.reshape(values.shape[0], groups, INT4_GROUP)


def _four_bit_linear(graph: Graph, node: NodeProto, name: str, codes: Codes) -> None:
    rows, columns = codes.values.shape
    inputs = [
        node.input[0],
        graph.constant(f"{name}.weight_q4", pack_four_bits(_blocks(codes))),
        graph.constant(f"{name}.weight_scale", codes.scales.numpy().reshape(-1)),
    ]
    if codes.zeros is not None:
        inputs.append(graph.constant(f"{name}.weight_zero", pack_four_bits(codes.zeros.numpy()).reshape(-1)))
    product = graph.add(
        "MatMulNBits",
        inputs,
        [f"{node.output[0]}_product"],
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=4,
        block_size=INT4_GROUP,
        accuracy_level=4,
    )
    _with_bias(graph, node, product)


def _embedding(graph: Graph, node: NodeProto, name: str, codes: Codes) -> None:
    """Rows of integers are looked up, with their scales and zero points, and become floats."""
    stem, rows = node.output[0], (len(codes.values), 1)
    looked_up = _row(graph, f"{name}.weight_q", codes.values.numpy(), node)
    value = graph.add("Cast", [looked_up], [f"{stem}_float"], to=onnx.TensorProto.FLOAT)
    if codes.zeros is not None:
        zeros = np.broadcast_to(codes.zeros.numpy().reshape(-1, 1), rows)
        zero = _row(graph, f"{name}.weight_zero", zeros, node)
        as_float = graph.add("Cast", [zero], [f"{stem}_zero"], to=onnx.TensorProto.FLOAT)
        value = graph.add("Sub", [value, as_float], [f"{stem}_centred"])
    scales = np.broadcast_to(codes.scales.numpy().reshape(-1, 1), rows)
    graph.add("Mul", [value, _row(graph, f"{name}.weight_scale", scales, node)], [stem])


def _row(graph: Graph, constant: str, value: NDArray[Any], node: NodeProto) -> str:
    """Rows of a constant, looked up by the node's indices."""
    data = graph.constant(constant, value)
    return graph.add("Gather", [data, node.input[1]], [f"{node.output[0]}_{constant.rpartition('.')[2]}"], axis=0)


def _four_bit_embedding(graph: Graph, node: NodeProto, name: str, codes: Codes) -> None:
    if codes.values.shape[1] % INT4_GROUP:
        raise ExportError(f"layer {name!r}: its rows of {codes.values.shape[1]} are no multiple of {INT4_GROUP}")
    stem, blocks = node.output[0], _blocks(codes)
    data = graph.constant(f"{name}.weight_q4", pack_four_bits(blocks.reshape(blocks.shape[0], -1)))
    scales = graph.constant(f"{name}.weight_scale", codes.scales.numpy())
    looked_up = graph.add(
        "GatherBlockQuantized",
        [data, node.input[1], scales],
        [stem if codes.zeros is None else f"{stem}_symmetric"],
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        block_size=INT4_GROUP,
        bits=4,
    )
    if codes.zeros is not None:
        graph.add("Sub", [looked_up, _offsets(graph, node, name, codes)], [stem])


def _offsets(graph: Graph, node: NodeProto, name: str, codes: Codes) -> str:
    """``zero · scale`` of each looked-up value: OpenVINO cannot read packed zero points of an odd number of groups."""
    assert codes.zeros is not None
    stem, groups = node.output[0], codes.scales.shape[1]
    zero = _row(graph, f"{name}.weight_zero", codes.zeros.numpy(), node)
    as_float = graph.add("Cast", [zero], [f"{stem}_zero"], to=onnx.TensorProto.FLOAT)
    scale = graph.add("Gather", [f"{name}.weight_scale", node.input[1]], [f"{stem}_scales"], axis=0)
    per_group = graph.add("Mul", [as_float, scale], [f"{stem}_group_offsets"])
    widen = np.repeat(np.eye(groups, dtype=np.float32), INT4_GROUP, axis=1)
    return graph.add("MatMul", [per_group, graph.constant(f"{name}.weight_groups", widen)], [f"{stem}_offsets"])


#: What takes an operator's place, by operator and precision.
FORMS: dict[tuple[str, str], Form] = {
    ("Conv", "int8"): _static_conv,
    ("Gather", "int8-weights"): _embedding,
    ("Gather", "int4-weights"): _four_bit_embedding,
    **{(linear, "int8"): _static_linear for linear in ("MatMul", "Gemm")},
    **{(linear, "int8-dynamic"): _dynamic_linear for linear in ("MatMul", "Gemm")},
    **{(linear, "int4-weights"): _four_bit_linear for linear in ("MatMul", "Gemm")},
}
