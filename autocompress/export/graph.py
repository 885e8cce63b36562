"""An ONNX graph under construction: new nodes in order, constants by name, and what is already made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from autocompress.compressing.codes import Steps

MICROSOFT = "com.microsoft"


@dataclass
class Graph:
    """The graph under construction.

    Attributes:
        initializers: constants by name.
        producers: node of the input graph by the name of its output.
        followers: a node of the input graph that reads a name.
        readers: how many nodes of the input graph read a name; the graph's outputs count too.
        nodes: of the new graph.
        shared: names made for a purpose, by what tells purposes apart.
        rounded: quantizers of outputs that are still to come.
        integers: integers, scale and zero point of rounded values, by the name of the values.
    """

    initializers: dict[str, onnx.TensorProto]
    producers: Mapping[str, NodeProto]
    followers: Mapping[str, NodeProto]
    readers: Counter[str]
    nodes: list[NodeProto] = field(default_factory=list)
    shared: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)
    rounded: dict[str, Steps] = field(default_factory=dict)
    integers: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    @staticmethod
    def of(model: onnx.ModelProto) -> Graph:
        """The graph that will take a model's place."""
        nodes = model.graph.node
        read = [name for node in nodes for name in node.input] + [item.name for item in model.graph.output]
        return Graph(
            initializers={item.name: item for item in model.graph.initializer},
            producers={output: node for node in nodes for output in node.output},
            followers={name: node for node in nodes for name in node.input},
            readers=Counter(read),
        )

    def reader(self, name: str) -> NodeProto | None:
        """The node of the input graph that alone reads a name."""
        return self.followers.get(name) if self.readers[name] == 1 else None

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant; its name."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node; the name of its first output."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0] + "_node", **attributes))
        return outputs[0]

    def array(self, name: str) -> NDArray[Any]:
        """A constant's value; the exporter puts equal constants behind one Identity."""
        while name not in self.initializers and self.producers[name].op_type == "Identity":
            name = self.producers[name].input[0]
        value: NDArray[Any] = numpy_helper.to_array(self.initializers[name])
        return value

    def assemble(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the model with the new nodes, and of the constants those that they read."""
        used = {name for node in self.nodes for name in node.input}
        result = onnx.ModelProto()
        result.CopyFrom(model)
        del result.graph.node[:]
        result.graph.node.extend(self.nodes)
        del result.graph.initializer[:]
        result.graph.initializer.extend(item for name, item in self.initializers.items() if name in used)
        if any(node.domain == MICROSOFT for node in self.nodes):
            result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return result
