"""How channels flow through a traced graph: operations are followed one by one, elements that meet are joined.

What an operation does with channels stands in `operations.py`. What meets an operation that is not known there is
pinned: it cannot be removed.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from autocompress.adapters.elements import Elements, Ids, Place


@dataclass(frozen=True)
class Channels:
    """Element numbers along one axis of a tensor, `FIXED` among them; ``(shape[axis],)``."""

    axis: int
    ids: Ids


Flowing = Channels | list[Channels | None] | None


class Flow:
    """The elements of a traced model, joined as its operations ask.

    Args:
        program: from `torch.export.export`.
        model: what was traced.
        rules: what each operation does with channels, by its name in ATen without trailing underscore; "pointwise"
            for all of its kind.
    """

    def __init__(self, program: ExportedProgram, model: nn.Module, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self.elements = Elements()
        self.model = model
        signature = program.graph_signature
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        owners = Counter(id(p) for _name, p in model.named_parameters(remove_duplicate=False))
        self._shared = {n for n, p in model.named_parameters(remove_duplicate=False) if owners[id(p)] > 1}
        self._channels: dict[Node, Flowing] = {}
        for node in program.graph.nodes:
            self._channels[node] = self._follow(node)

    def channels(self, node: Any) -> Channels | None:
        """The channels of a tensor; None where none are known."""
        found = self._channels.get(node) if isinstance(node, Node) else None
        return found if isinstance(found, Channels) else None

    def parts(self, node: Any) -> list[Channels | None]:
        """The channels of each tensor of a tuple."""
        found = self._channels.get(node)
        return found if isinstance(found, list) else []

    def parameter(self, node: Any) -> str:
        """Dotted name of the parameter or buffer that the node brings in; "" where it is none, or shared."""
        name = self._names.get(node.name, "") if isinstance(node, Node) and node.op == "placeholder" else ""
        return "" if name in self._shared else name

    def owner(self, node: Any, *kinds: type[nn.Module]) -> tuple[str, nn.Module] | None:
        """Name and module of one of some kinds whose parameter or buffer the node brings in."""
        name = self.parameter(node).rpartition(".")[0]
        module = self.model.get_submodule(name) if self.parameter(node) else None
        return (name, module) if module is not None and type(module) in kinds else None

    def pin(self, *found: Flowing) -> None:
        """Let these channels stay."""
        for item in found:
            if isinstance(item, list):
                self.pin(*item)
            elif item is not None:
                self.elements.pin(item.ids.tolist())

    def read(self, place: Place, count: int, channels: Channels | None, axis: int) -> Ids:
        """The elements of a place, joined with the channels that lie along `axis`; pinned where none do."""
        ids = self.elements.of(place, count)
        if channels is None or channels.axis != axis or len(channels.ids) != count:
            self.pin(channels)
            self.elements.pin(ids.tolist())
        else:
            self.elements.join(ids, channels.ids)
        return ids

    def unknown(self, node: Node) -> Flowing:
        """Pin all that goes into an operation; nothing is known of what comes out."""
        self.pin(*(self._channels.get(n) for n in node.all_input_nodes))
        return None

    def _follow(self, node: Node) -> Flowing:
        if node.op in ("placeholder", "get_attr"):
            return None
        if node.target is operator.getitem:
            parts, number = self.parts(node.args[0]), node.args[1]
            return parts[number] if isinstance(number, int) and number < len(parts) else None
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target.overloadpacket.__name__
            rule = self._rules.get(name) or self._rules.get(name.removesuffix("_"))
            if rule is None and torch.Tag.pointwise in node.target.tags:
                rule = self._rules["pointwise"]
            if rule is not None:
                return rule(self, node)
        return self.unknown(node)


Rule = Callable[[Flow, Node], Flowing]
