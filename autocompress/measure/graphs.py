"""An ONNX file with every shape in numbers, and which of its nodes cost something. Knows onnx, no chip, no seconds.

Changes of shape, arithmetic on shapes, and what depends on constants alone cost nothing. A DequantizeLinear costs
nothing either: it is part of whatever reads it, which reads the integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.defs import OpSchema, SchemaError, get_schema
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_node_outputs

from autocompress.errors import MeasureError
from autocompress.measure.decoding import KEPT, PAST

#: Nodes that only give a tensor another shape or name.
VIEWS = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout", "DequantizeLinear")

#: Constants up to so many elements are worked out, because shapes may depend on them.
SMALL = 1024

#: Domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"

#: Endings under which `export` keeps a layer's integers or halves.
ENDINGS = (".weight_q", ".weight_q4", ".weight_f16", ".weight_scale", ".weight_zero", ".weight_groups")


@dataclass(frozen=True)
class Size:
    """What stands for the free axes of a file.

    Attributes:
        batch: samples.
        tokens: of one run; None for tasks without a sequence.
        past: tokens before them, for a file that reads a past.
        shapes: of inputs by name, where they are known; they go first.
    """

    batch: int = 1
    tokens: int | None = None
    past: int = 0
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Constant:
    """A constant as it is stored.

    Attributes:
        elements: how many.
        bits: of each.
        layer: whose weight it is, or "".
    """

    elements: int
    bits: float
    layer: str

    @property
    def bytes(self) -> float:
        """Its size in memory."""
        return self.elements * self.bits / 8


@dataclass(frozen=True)
class Node:
    """A node that costs something.

    Attributes:
        name, operator: as in the file.
        inputs, outputs: names as in the file, without those left out.
        held: names under which the values of the inputs lie in memory.
        numbers: its integer attributes.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    held: tuple[str, ...]
    numbers: Mapping[str, int]


@dataclass
class Graph:
    """What is known of a file, node by node.

    Attributes:
        path: of the file, for messages.
        opsets, ir: versions of its operators and of its format.
        types: of every name, shapes in numbers.
        values: of small tensors that depend on constants and shapes alone.
        constants: what depends on constants alone.
        holders: name to the name that holds its values in memory, where that is another.
        given: inputs of the file.
        results: names that hold its outputs.
        nodes: those that cost something, in order.
    """

    path: Path
    opsets: dict[str, int]
    ir: int
    types: dict[str, TypeProto] = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    results: set[str] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)

    def shape(self, name: str) -> list[int]:
        """Dimensions of a name."""
        return [dimension.dim_value for dimension in self.types[name].tensor_type.shape.dim]

    def elements(self, name: str) -> int:
        """Number of values of a name."""
        return math.prod(self.shape(name))

    def bits(self, name: str) -> float:
        """Bits of each value of a name, as it is stored."""
        if name in self.constants:
            return self.constants[name].bits
        return _bits(self.types[self.holder(name)].tensor_type.elem_type)

    def holder(self, name: str) -> str:
        """The name under which a value lies in memory."""
        return self.holders.get(name, name)

    def moves(self, name: str) -> bool:
        """Whether a name is a tensor in memory, and no constant or number about shapes."""
        return name not in self.constants and name not in self.values


def layer_of(name: str) -> str:
    """The module whose weight a constant is, by its name; "" for all else."""
    if name.endswith(".weight"):
        return name.removesuffix(".weight").removeprefix("model.")
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), None)
    return name.removesuffix(ending) if ending else ""


def reads_past(path: Path) -> bool:
    """Whether a file is a decoder that is fed its past."""
    return any(item.name.startswith(PAST) for item in _load(path).graph.input)


def read_graph(path: Path, size: Size) -> Graph:
    """A file's nodes and shapes at the given size.

    Raises:
        MeasureError: the file is no ONNX, an axis stays open, or an operator is not known.
    """
    model = _load(path)
    graph = Graph(path, {item.domain: item.version for item in model.opset_import}, model.ir_version)
    for item in model.graph.initializer:
        _take_initializer(graph, item)
    for given in model.graph.input:
        if given.name not in graph.constants:
            graph.types[given.name] = _bound(path, given, size)
            graph.given.add(given.name)
    for node in model.graph.node:
        _visit(graph, node)
    graph.results = {graph.holder(item.name) for item in model.graph.output}
    return graph


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model(str(path))
    except Exception as fault:  # protobuf's own errors, which differ by version
        raise MeasureError(f"{path}: cannot be read as ONNX: {' '.join(str(fault).split())}") from None


def _bound(path: Path, given: onnx.ValueInfoProto, size: Size) -> TypeProto:
    """An input's type with numbers for its free axes."""
    bound = TypeProto()
    bound.CopyFrom(given.type)
    shape = dict(size.shapes).get(given.name, ())
    for place, dimension in enumerate(bound.tensor_type.shape.dim):
        if dimension.HasField("dim_value"):
            continue
        if place < len(shape):
            value: int | None = shape[place]
        elif given.name == KEPT:
            value = 1
        elif place == 0 or dimension.dim_param == "batch":
            value = size.batch
        else:
            value = size.past if given.name.startswith(PAST) else size.tokens
        if value is None:
            raise MeasureError(
                f"{path}: input {given.name!r} has the free axis {dimension.dim_param!r}, "
                "but the profile's workload has no sequence_length"
            )
        dimension.dim_value = value
    return bound


def _take_initializer(graph: Graph, item: TensorProto) -> None:
    graph.types[item.name] = helper.make_tensor_type_proto(item.data_type, list(item.dims))
    elements = math.prod(item.dims)
    graph.constants[item.name] = Constant(elements, _bits(item.data_type), layer_of(item.name))
    if elements <= SMALL:
        graph.values[item.name] = numpy_helper.to_array(item)


def _visit(graph: Graph, node: NodeProto) -> None:
    """Find the types of a node's outputs, and whether it costs something."""
    inputs, outputs = [name for name in node.input if name], [name for name in node.output if name]
    _infer(graph, node, inputs)
    constant = all(name in graph.constants for name in inputs)
    known = node.op_type == "Shape" or all(name in graph.values for name in inputs)
    if known and not node.domain and sum(graph.elements(name) for name in outputs) <= SMALL:
        _work_out(graph, node, inputs)
        if not constant:
            return  # arithmetic on shapes
    if constant:
        _take_constant(graph, inputs, outputs)
    elif node.op_type in VIEWS:
        graph.holders[outputs[0]] = graph.holder(inputs[0])
    else:
        held = tuple(graph.holder(name) for name in inputs)
        numbers = {item.name: int(item.i) for item in node.attribute if item.type == onnx.AttributeProto.INT}
        graph.nodes.append(Node(node.name, node.op_type, tuple(inputs), tuple(outputs), held, numbers))


def _infer(graph: Graph, node: NodeProto, inputs: Sequence[str]) -> None:
    own = OWN_TYPES.get(node.op_type) if node.domain == MICROSOFT else None
    if own is not None:
        graph.types[node.output[0]] = own(graph, node)
        return
    where = f"{graph.path}: {node.op_type} ({node.name!r})"
    try:
        outputs = infer_node_outputs(
            _schema(graph, node, where),
            node,
            {name: graph.types[name] for name in inputs},
            {name: numpy_helper.from_array(graph.values[name]) for name in inputs if name in graph.values},
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in graph.opsets.items()],
            ir_version=graph.ir,
        )
    except InferenceError as fault:
        raise MeasureError(f"{where}: {' '.join(str(fault).split())}") from None
    graph.types.update(outputs)
    for name in node.output:
        found = outputs[name].tensor_type if name in outputs else None
        if name and (found is None or any(not d.HasField("dim_value") for d in found.shape.dim)):
            raise MeasureError(f"{where}: the shape of its output {name!r} cannot be told beforehand")


def _schema(graph: Graph, node: NodeProto, where: str) -> OpSchema:
    try:
        return get_schema(node.op_type, graph.opsets.get(node.domain, 1), node.domain)
    except SchemaError:
        raise MeasureError(f"{where}: an operator of {node.domain or 'ai.onnx'} whose work is not known") from None


def _work_out(graph: Graph, node: NodeProto, inputs: Sequence[str]) -> None:
    if node.op_type == "Shape":
        bounds = {item.name: item.i for item in node.attribute}
        part = graph.shape(inputs[0])[bounds.get("start", 0) : bounds.get("end")]
        graph.values[node.output[0]] = np.array(part, dtype=np.int64)
        return
    if node.op_type == "GatherElements":  # which the evaluator of onnx 1.23 cannot do for all shapes
        data, indices = (graph.values[name] for name in inputs)
        graph.values[node.output[0]] = np.take_along_axis(data, indices, _number(node, "axis", 0))
        return
    evaluator = ReferenceEvaluator(node, opsets=graph.opsets)
    found = evaluator.run(None, {name: graph.values[name] for name in inputs})
    for name, value in zip(node.output, found, strict=False):
        graph.values[name] = np.asarray(value)


def _take_constant(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """A constant made of constants: a weight that is cast, turned or scaled is read as it is stored."""
    stored = graph.constants[inputs[0]] if inputs else None
    for name in outputs:
        layer = layer_of(name) or (stored.layer if stored else "")
        if stored is not None and stored.elements == graph.elements(name):
            graph.constants[name] = replace(stored, layer=layer)
        else:
            bits = _bits(graph.types[name].tensor_type.elem_type)
            graph.constants[name] = Constant(graph.elements(name), bits, layer)


def _bits(element: int) -> float:
    if element in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return 4.0
    return float(helper.tensor_dtype_to_np_dtype(element).itemsize * 8)


def _number(node: NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _type_of_product(graph: Graph, node: NodeProto) -> TypeProto:
    """MatMulNBits: ``(…, K)`` becomes ``(…, N)``."""
    element = graph.types[node.input[0]].tensor_type.elem_type
    return helper.make_tensor_type_proto(element, [*graph.shape(node.input[0])[:-1], _number(node, "N", 0)])


def _type_of_rows(graph: Graph, node: NodeProto) -> TypeProto:
    """GatherBlockQuantized: the indices stand in the place of the axis that they choose from."""
    data, indices = graph.shape(node.input[0]), graph.shape(node.input[1])
    if graph.types[node.input[0]].tensor_type.elem_type == TensorProto.UINT8:
        data[-1] *= 8 // _number(node, "bits", 4)  # packed
    place = _number(node, "gather_axis", 0)
    element = graph.types[node.input[2]].tensor_type.elem_type
    return helper.make_tensor_type_proto(element, [*data[:place], *indices, *data[place + 1 :]])


#: Output types of ONNX Runtime's own operators, of which onnx knows nothing.
OWN_TYPES = {"MatMulNBits": _type_of_product, "GatherBlockQuantized": _type_of_rows}
