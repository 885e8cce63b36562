"""What an ONNX file computes, as steps that runtimes fuse: multiply-adds, weights, tensors read and written.

How nodes become steps:

- a matrix product or convolution is a step, and takes along the elementwise nodes behind it if it is the last that
  they wait for: bias, activation function, residual, rounding;
- a look-up in a table is a step;
- of all other nodes, those that hang together without a product in between (a norm, a softmax with its mask) are one
  step, one pass over memory.

Scales and zero points are left out where there is one per channel or tensor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from autocompress.errors import MeasureError
from autocompress.measure.graphs import Graph, Node, Size, read_graph
from autocompress.plan import Precision

Kind = Literal["product", "lookup", "pass"]

#: Matrix products and convolutions: the places of their two factors among the inputs.
FACTORS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "ConvTranspose", "MatMulInteger", "ConvInteger", "MatMulNBits"), (0, 1)),
    **dict.fromkeys(("QLinearMatMul", "QLinearConv"), (0, 3)),
}

#: The place of the bias, where a product has one.
BIAS = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "QLinearConv": 8}

#: Nodes that a product can take along: a value of the output depends on few of the input, and on no statistic.
ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "Cast",
        "Clip",
        "Cos",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "PRelu",
        "QuantizeLinear",
        "Reciprocal",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Sqrt",
        "Sub",
        "Tanh",
        "Transpose",
        "Where",
    }
)

#: Nodes with products inside that are not counted here.
UNCOUNTED = frozenset({"Einsum", "LSTM", "GRU", "RNN", "Loop", "Scan", "If", "DeformConv", "DFT", "Det"})


@dataclass(frozen=True)
class Tensor:
    """What a step reads or writes.

    Attributes:
        elements: how many.
        bits: of each.
    """

    elements: int
    bits: float


@dataclass(frozen=True)
class Step:
    """Nodes that run as one kernel.

    Attributes:
        kind: "product" (matrix product or convolution with what it takes along), "lookup" or "pass".
        name, operator: of its first node.
        layer: module whose weight it multiplies or looks up, or "".
        precision: what the bits of weight and input come to; of two activations, what theirs do.
        macs: multiply-adds.
        weights: weights that are read, and `weight_bits` of each, scales of groups included.
        constant_bytes: further constants: biases, norms.
        factors: tensors that are multiplied.
        reads: further tensors.
        writes: tensors that others read.
    """

    kind: Kind
    name: str
    operator: str
    layer: str = ""
    precision: Precision = "fp32"
    macs: int = 0
    weights: int = 0
    weight_bits: float = 0.0
    constant_bytes: float = 0.0
    factors: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """A file's steps in order, and the tensors between them by name.

    Attributes:
        steps, tensors: what is computed from what.
        results: tensors that the file gives back.
    """

    steps: tuple[Step, ...]
    tensors: Mapping[str, Tensor]
    results: frozenset[str]

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds per layer; those of products of two activations under ""."""
        found: dict[str, int] = defaultdict(int)
        for step in self.steps:
            if step.macs:
                found[step.layer] += step.macs
        return dict(found)


def read_work(path: Path, size: Size) -> Work:
    """The steps of a file at the given size.

    Raises:
        MeasureError: the file is no ONNX, an axis stays open, or an operator's work is not known.
    """
    graph = read_graph(path, size)
    for node in graph.nodes:
        if node.operator in UNCOUNTED:
            raise MeasureError(f"{path}: {node.operator} ({node.name!r}): an operator whose work is not known")
    groups = list(_groups(graph))
    readers: dict[str, set[int]] = defaultdict(set)
    for place, group in enumerate(groups):
        for node in group:
            for name in node.held:
                readers[name].add(place)
    steps = tuple(_step(graph, group, readers, place) for place, group in enumerate(groups))
    names = {name for step in steps for name in (*step.factors, *step.reads, *step.writes)}
    tensors = {name: Tensor(graph.elements(name), graph.bits(name)) for name in sorted(names)}
    return Work(steps, tensors, frozenset(names & graph.results))


def _kind(graph: Graph, node: Node) -> Kind:
    if node.operator in FACTORS:
        return "product"
    looks_up = node.operator in ("Gather", "GatherBlockQuantized") and node.inputs[0] in graph.constants
    return "lookup" if looks_up else "pass"


def _groups(graph: Graph) -> Iterator[list[Node]]:
    """Nodes by step, in an order in which they can run: the product or look-up first."""
    nodes = graph.nodes
    kinds = [_kind(graph, node) for node in nodes]
    maker = {name: place for place, node in enumerate(nodes) for name in node.outputs}
    depths, heads = _together(nodes, kinds, maker)
    members: dict[int, list[int]] = defaultdict(list)
    readers: dict[str, set[int]] = defaultdict(set)
    for place, head in enumerate(heads):
        members[head].append(place)
        for name in nodes[place].held:
            readers[name].add(head)
    takers: dict[int, int] = {}
    for head, places in members.items():
        if any(kinds[place] != "pass" or nodes[place].operator not in ELEMENTWISE for place in places):
            continue
        sources = {maker[name] for place in places for name in nodes[place].held if name in maker}
        products = [s for s in sources if kinds[s] == "product" and depths[s] == depths[head]]
        if products:
            output = nodes[max(products)].outputs[0]
            if readers[output] == {head} and output not in graph.results:
                takers[max(products)] = head
    taken = set(takers.values())
    for head in sorted(set(heads) - taken, key=lambda head: (depths[head], kinds[head] == "pass", head)):
        yield [nodes[place] for place in (*members[head], *(members[takers[head]] if head in takers else ()))]


def _together(nodes: Sequence[Node], kinds: Sequence[Kind], maker: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """For every node how many products and look-ups precede it in a row, and the first node that it runs with.

    Passes that feed each other run together where the same number precedes them, so that no step waits for itself.
    """
    depths: list[int] = []
    parents = list(range(len(nodes)))

    def head(place: int) -> int:
        while parents[place] != place:
            place = parents[place]
        return place

    for place, node in enumerate(nodes):
        sources = [maker[name] for name in node.held if name in maker]
        depth = max((depths[source] for source in sources), default=0) + (kinds[place] != "pass")
        depths.append(depth)
        for source in sources:
            if kinds[place] == kinds[source] == "pass" and depths[source] == depth:
                first, second = sorted((head(source), head(place)))
                parents[second] = first
    return depths, [head(place) for place in range(len(nodes))]


def _step(graph: Graph, group: Sequence[Node], readers: Mapping[str, set[int]], own: int) -> Step:
    """The step of a group of nodes, which is number `own` among the readers."""
    first, kind = group[0], _kind(graph, group[0])
    passes = group if kind == "pass" else group[1:]
    made = {name for node in group for name in node.outputs}
    read = dict.fromkeys(n for node in passes for n in node.held if n not in made and graph.moves(n))
    held = {n for node in passes if node.operator != "QuantizeLinear" for n in node.inputs if _counts(graph, n)}
    base = {"product": _product, "lookup": _lookup, "pass": _pass}[kind](graph, first)
    return replace(
        base,
        constant_bytes=base.constant_bytes + sum(graph.constants[name].bytes for name in sorted(held)),
        reads=(*base.reads, *read),
        writes=tuple(n for node in group for n in node.outputs if n in graph.results or readers.get(n, set()) - {own}),
    )


def _counts(graph: Graph, name: str) -> bool:
    return name in graph.constants and graph.constants[name].elements > 1


def _pass(_graph: Graph, node: Node) -> Step:
    return Step("pass", node.name, node.operator)


def _product(graph: Graph, node: Node) -> Step:
    """One product, without what it takes along."""
    factors = [node.inputs[place] for place in FACTORS[node.operator]]
    bits = [graph.bits(name) for name in factors]
    moved = tuple(graph.holder(name) for name in factors if graph.moves(name))
    step = Step("product", node.name, node.operator, macs=_macs(graph, node), factors=moved)
    stored = next((name for name in reversed(factors) if name in graph.constants), None)
    if stored is None:
        return replace(step, precision=_precision(max(bits), max(bits)))
    weight, other = graph.constants[stored], bits[1 - factors.index(stored)]
    if node.operator == "MatMulNBits":
        return _in_blocks(graph, node, step)
    place = BIAS.get(node.operator, len(node.inputs))
    bias = node.inputs[place] if place < len(node.inputs) else ""
    return replace(
        step,
        layer=weight.layer,
        precision=_precision(weight.bits, other),
        weights=weight.elements,
        weight_bits=weight.bits,
        constant_bytes=graph.constants[bias].bytes if bias in graph.constants else 0.0,
    )


def _in_blocks(graph: Graph, node: Node, step: Step) -> Step:
    """A product with packed weights whose scales, one per block, are worth counting."""
    weights = node.numbers["K"] * node.numbers["N"]
    held = sum(graph.constants[name].bytes for name in node.inputs[1:] if name in graph.constants)
    return replace(
        step,
        layer=graph.constants[node.inputs[1]].layer,
        precision="int4-weights" if node.numbers["bits"] <= 4 else "int8-weights",
        weights=weights,
        weight_bits=8 * held / weights,
    )


def _precision(weight: float, other: float) -> Precision:
    """What the bits of a weight and of what it meets come to."""
    if weight > 16:
        return "fp32"
    if weight > 8:
        return "fp16"
    if weight > 4:
        return "int8" if other <= 8 else "int8-weights"
    return "int4-weights"


def _macs(graph: Graph, node: Node) -> int:
    """Multiply-adds of a product, from its shapes."""
    left, right = (graph.shape(node.inputs[place]) for place in FACTORS[node.operator])
    outputs = graph.elements(node.outputs[0])
    if node.operator == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if "Conv" in node.operator:
        return outputs * math.prod(right[1:])
    if node.operator == "Gemm":
        return outputs * left[0 if node.numbers.get("transA") else 1]
    return outputs * left[-1]


def _lookup(graph: Graph, node: Node) -> Step:
    """One look-up: it reads as many weights as it writes values."""
    table, bits = graph.constants[node.inputs[0]], graph.constants[node.inputs[0]].bits
    precision = _precision(bits, 32)
    if node.operator == "GatherBlockQuantized":
        precision, scale = "int4-weights", graph.constants[node.inputs[2]].bits
        bits = node.numbers.get("bits", 4) + scale / node.numbers["block_size"]
    return Step(
        "lookup",
        node.name,
        node.operator,
        layer=table.layer,
        precision=precision,
        weights=graph.elements(node.outputs[0]),
        weight_bits=bits,
        reads=tuple(name for name in node.held if graph.moves(name)),
    )
