"""What each tensor operation does with channels: hands them on, joins them, reads them, makes new ones."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from autocompress.adapters.elements import FIXED, Place
from autocompress.adapters.flow import Channels, Flow, Flowing, Rule


def _arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operation by the names in its schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    named = {}
    for i, item in enumerate(node.target._schema.arguments):
        default = item.default_value if item.has_default_value() else None
        named[item.name] = node.args[i] if i < len(node.args) else node.kwargs.get(item.name, default)
    return named


def _shape(node: Node) -> tuple[int, ...]:
    """Sizes of the first tensor that a node gives; () where it gives none."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) and value else value
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def _first(node: Node) -> Node:
    first = node.args[0]
    assert isinstance(first, Node)
    return first


def _convolution(flow: Flow, node: Node) -> Flowing:
    """Reads the channels of its input and makes new ones; a depthwise one hands them on."""
    found = flow.owner(_arguments(node)["weight"], nn.Conv2d)
    if found is None:
        return flow.unknown(node)
    name, module = found
    assert isinstance(module, nn.Conv2d)
    channels, axis = flow.channels(node.args[0]), len(_shape(node)) - 3
    if module.groups == 1:
        flow.read(Place("consumer", name), module.in_channels, channels, axis)
        return Channels(axis, flow.elements.of(Place("producer", name), module.out_channels))
    if module.groups == module.in_channels == module.out_channels:
        return Channels(axis, flow.read(Place("carrier", name), module.groups, channels, axis))
    return flow.unknown(node)


def _linear(flow: Flow, node: Node) -> Flowing:
    """Reads the features of its input, which may be flattened channels, and makes new ones."""
    found = flow.owner(_arguments(node)["weight"], nn.Linear)
    if found is None:
        return flow.unknown(node)
    name, module = found
    assert isinstance(module, nn.Linear)
    axis = len(_shape(node)) - 1
    flow.read(Place("consumer", name), module.in_features, flow.channels(node.args[0]), axis)
    return Channels(axis, flow.elements.of(Place("producer", name), module.out_features))


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm)


def _norm(flow: Flow, node: Node) -> Flowing:
    """Scales each channel by itself; a group norm over several channels mixes them."""
    named, channels = _arguments(node), flow.channels(node.args[0])
    count = _shape(node)[1]
    if named.get("num_groups", count) != count:
        return flow.unknown(node)
    held = [named[key] for key in ("weight", "running_mean") if named.get(key) is not None]
    if not held:
        return channels if channels is not None and channels.axis == 1 else flow.unknown(node)
    found = flow.owner(held[0], *NORMS)
    if found is None:
        return flow.unknown(node)
    return Channels(1, flow.read(Place("carrier", found[0]), count, channels, 1))


def _prelu(flow: Flow, node: Node) -> Flowing:
    """One slope for all channels, or one for each."""
    channels, weight = flow.channels(node.args[0]), _arguments(node)["weight"]
    if _shape(weight) == (1,):
        return channels
    found = flow.owner(weight, nn.PReLU)
    if found is None:
        return flow.unknown(node)
    return Channels(1, flow.read(Place("carrier", found[0]), _shape(weight)[0], channels, 1))


def _pointwise(flow: Flow, node: Node) -> Flowing:
    """Channels of all operands that are not broadcast are the same; a bare parameter carries them."""
    dims, operands = len(_shape(node)), [n for n in node.all_input_nodes if _shape(n)]
    known = [(c, c.axis + dims - len(_shape(n))) for n in operands if (c := flow.channels(n)) is not None]
    if not known:
        return None
    axis = known[0][1]
    size = _shape(node)[axis]
    if any(place != axis or len(channels.ids) != size for channels, place in known):
        return flow.unknown(node)
    result = Channels(axis, known[0][0].ids)
    for channels, _place in known[1:]:
        flow.elements.join(result.ids, channels.ids)
    for operand in operands:
        place = axis - dims + len(_shape(operand))
        if flow.channels(operand) is None and place >= 0 and _shape(operand)[place] != 1:
            _scaled(flow, operand, place, result)
    return result


def _scaled(flow: Flow, operand: Node, axis: int, channels: Channels) -> None:
    """An operand that holds one value per channel: a bare parameter is cut with them, anything else pins them."""
    name = flow.parameter(operand)
    if name and isinstance(operator.attrgetter(name)(flow.model), nn.Parameter):
        flow.read(Place("carrier", name, axis), len(channels.ids), Channels(axis, channels.ids), axis)
    else:
        flow.pin(channels)


def _same(flow: Flow, node: Node) -> Flowing:
    """Hands its input on."""
    return flow.channels(node.args[0])


def _ignored(_flow: Flow, _node: Node) -> Flowing:
    """Looks at its input and makes nothing of it."""
    return None


def _window(flow: Flow, node: Node) -> Flowing:
    """Works within the two last axes."""
    channels = flow.channels(node.args[0])
    if channels is None or channels.axis >= len(_shape(_first(node))) - 2:
        return flow.unknown(node)
    return [channels, None] if isinstance(node.meta.get("val"), tuple | list) else channels


def _reduction(flow: Flow, node: Node) -> Flowing:
    """Leaves the channels where it does not reduce over them."""
    channels, named = flow.channels(node.args[0]), _arguments(node)
    dims = named.get("dim")
    if channels is None or dims is None or dims == []:
        return flow.unknown(node)
    count = len(_shape(_first(node)))
    gone = {d % count for d in ([dims] if isinstance(dims, int) else dims)}
    if channels.axis in gone:
        return flow.unknown(node)
    axis = channels.axis - (0 if named["keepdim"] else sum(d < channels.axis for d in gone))
    return Channels(axis, channels.ids)


def _reshape(flow: Flow, node: Node) -> Flowing:
    """The axis that holds the channels afterwards, each of them repeated for every position that joins them."""
    channels = flow.channels(node.args[0])
    if channels is None:
        return None
    after, count = _shape(node), len(channels.ids)
    leading = math.prod(_shape(_first(node))[: channels.axis])
    for axis, size in enumerate(after):
        if count > 1 and size % count == 0 and math.prod(after[:axis]) == leading:
            return Channels(axis, np.repeat(channels.ids, size // count))
    return flow.unknown(node)


def _moved(flow: Flow, node: Node, order: Sequence[int | None]) -> Flowing:
    """Channels after a change of the axes' order; `order` holds the old axis of each new one."""
    channels = flow.channels(node.args[0])
    if channels is None:
        return None
    return Channels(order.index(channels.axis), channels.ids) if channels.axis in order else flow.unknown(node)


def _permute(flow: Flow, node: Node) -> Flowing:
    count = len(_shape(node))
    return _moved(flow, node, [d % count for d in _arguments(node)["dims"]])


def _transpose(flow: Flow, node: Node) -> Flowing:
    named, order = _arguments(node), list(range(len(_shape(node))))
    one, other = named["dim0"] % len(order), named["dim1"] % len(order)
    order[one], order[other] = other, one
    return _moved(flow, node, order)


def _unsqueeze(flow: Flow, node: Node) -> Flowing:
    order: list[int | None] = list(range(len(_shape(node)) - 1))
    order.insert(_arguments(node)["dim"] % len(_shape(node)), None)
    return _moved(flow, node, order)


def _squeeze(flow: Flow, node: Node) -> Flowing:
    before = _shape(_first(node))
    dims = _arguments(node).get("dim", range(len(before)))
    gone = {d % len(before) for d in ([dims] if isinstance(dims, int) else dims)}
    return _moved(flow, node, [i for i, size in enumerate(before) if i not in gone or size != 1])


def _expand(flow: Flow, node: Node) -> Flowing:
    channels = flow.channels(node.args[0])
    if channels is None:
        return None
    axis = channels.axis + len(_shape(node)) - len(_shape(_first(node)))
    return Channels(axis, channels.ids) if _shape(node)[axis] == len(channels.ids) else flow.unknown(node)


def _cat(flow: Flow, node: Node) -> Flowing:
    """Along the channels, one after the other; along another axis, one and the same."""
    named = _arguments(node)
    tensors, axis = named["tensors"], named["dim"] % len(_shape(node))
    found = [flow.channels(t) for t in tensors]
    known = [c for c in found if c is not None]
    if not known or any(c.axis != known[0].axis for c in known):
        return flow.unknown(node)
    if known[0].axis == axis:
        fixed = [np.full(_shape(t)[axis], FIXED) for t in tensors]
        return Channels(axis, np.concatenate([f if c is None else c.ids for c, f in zip(found, fixed, strict=True)]))
    if len(known) < len(found):
        return flow.unknown(node)
    for channels in known[1:]:
        flow.elements.join(known[0].ids, channels.ids)
    return known[0]


def _pad(flow: Flow, node: Node) -> Flowing:
    """Constants beside the channels are channels that nobody makes."""
    channels, named = flow.channels(node.args[0]), _arguments(node)
    if channels is None:
        return None
    ends = named["pad"][2 * (len(_shape(node)) - 1 - channels.axis) :][:2] or [0, 0]
    if min(ends) < 0 or (any(ends) and named.get("mode", "constant") != "constant"):
        return flow.unknown(node)
    return Channels(channels.axis, np.pad(channels.ids, ends, constant_values=FIXED))


def _slice(flow: Flow, node: Node) -> Flowing:
    """A part of the channels. Its bounds are written in the model, so none that counts towards them may go."""
    channels, named = flow.channels(node.args[0]), _arguments(node)
    if channels is None or named["dim"] % len(_shape(node)) != channels.axis:
        return channels
    start, end, size = named["start"] or 0, named["end"], len(channels.ids)
    end = size if end is None else end
    if named["step"] != 1 or start < 0 or end < 0:
        return flow.unknown(node)
    flow.elements.pin(channels.ids[: end if end < size else start].tolist())
    return Channels(channels.axis, channels.ids[start:end])


def _chunk(flow: Flow, node: Node) -> Flowing:
    """Equal parts of the channels stay equal when the parts lose the same ones."""
    channels, named = flow.channels(node.args[0]), _arguments(node)
    if channels is None:
        return None
    count = named["chunks"]
    if named["dim"] % len(_shape(_first(node))) != channels.axis:
        return [channels] * count
    if len(channels.ids) % count:
        return flow.unknown(node)
    parts = np.split(channels.ids, count)
    for part in parts[1:]:
        flow.elements.join(parts[0], part)
    return [Channels(channels.axis, part) for part in parts]


def _rules() -> dict[str, Rule]:
    """What each operation does with channels, by its name in ATen; see `flow.Flow`."""
    table: dict[Rule, str] = {
        _convolution: "conv2d",
        _linear: "linear",
        _norm: "batch_norm instance_norm group_norm",
        _prelu: "prelu",
        # beside those that torch tags as pointwise: some variants of these carry no tag
        _pointwise: "pointwise add sub mul div relu relu6 leaky_relu elu celu selu gelu silu mish softplus sigmoid "
        "tanh hardtanh hardswish hardsigmoid clamp",
        _same: "dropout feature_dropout alpha_dropout feature_alpha_dropout contiguous to detach alias clone",
        _ignored: "_assert_tensor_metadata sym_size",
        _window: "max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d",
        _reduction: "mean sum amax amin",
        _reshape: "view reshape flatten _unsafe_view unflatten",
        _permute: "permute",
        _transpose: "transpose",
        _unsqueeze: "unsqueeze",
        _squeeze: "squeeze",
        _expand: "expand expand_as",
        _cat: "cat concat",
        _pad: "pad constant_pad_nd",
        _slice: "slice",
        _chunk: "chunk",
    }
    return {name: rule for rule, names in table.items() for name in names.split()}


RULES = _rules()
