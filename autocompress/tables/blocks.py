"""One unit of a compressed torch model as an ONNX file with its inputs, as it stands in the whole file."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.codes import Codes
from autocompress.compressing.quantize import quantize
from autocompress.compressing.shape import shape
from autocompress.export.export import codes_for, float_graph
from autocompress.export.integers import insert_codes
from autocompress.export.products import exact
from autocompress.export.tracing import Axes, traceable, traced_graph
from autocompress.layers import LayerTable
from autocompress.plan import LayerPlan, Plan, Prune, Quantize
from autocompress.records import write_atomic
from autocompress.survey import evaluating, hooked
from autocompress.tables.neighbours import NO_SIDES, PLACE, Between, Side, Sides
from autocompress.tasks.task import Inputs, Task

#: Samples that ranges are calibrated on: their values cost no time, only that there are some.
SAMPLES = 4


@dataclass(frozen=True)
class Built:
    """A compressed model for timing: right shapes and integers, weights of no use.

    Attributes:
        model: in float.
        codes: by module name, as the profile's runtime wants them.
    """

    model: nn.Module
    codes: Mapping[str, Codes]


def timed_alike(plan: Plan) -> Plan:
    """The plan without what costs no time when the model runs: scores, repairs, zeros, calibration, recovery."""
    groups = {name: Prune(prune.keep, "magnitude", repair=False) for name, prune in plan.groups.items()}
    layers = {name: LayerPlan(lp.factorize, _plain(lp.quantize)) for name, lp in plan.layers.items()}
    return Plan(groups, layers)


def _plain(settings: Quantize | None) -> Quantize | None:
    if settings is None or settings.precision in ("fp16", "fp8"):
        return settings
    plain = replace(settings, rounding="nearest", bias_correction=False)
    return replace(plain, calibrator="min-max") if settings.precision == "int8" else plain


def build_for_timing(plan: Plan, task: Task, table: LayerTable, runtime: str) -> Built:
    """The model that a plan makes, as far as its latency goes: the first structures stay and nothing is repaired."""
    wanted = exact(timed_alike(plan), runtime)
    model = shape(task.source, wanted, table, FirstOnes(task.source))
    made = quantize(model, wanted, table, task.calibration(SAMPLES))
    return Built(traceable(made.model), codes_for(made.codes, runtime))


def export_whole(built: Built, task: Task, path: Path) -> None:
    """Write the whole model; its outputs are not checked, since it only tells the time."""
    content = insert_codes(float_graph(built.model, task), built.codes).SerializeToString()
    write_atomic(path, content)


@dataclass
class Call:
    """How a module was called.

    Attributes:
        leaves: its arguments, flattened.
        spec: their structure.
        times: how often it was called.
    """

    leaves: list[Any] = field(default_factory=list)
    spec: Any = None
    times: int = 0

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves that are tensors."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]


def watch_calls(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, Call]:
    """The first call of each module that is called with a tensor, in one run of the model; and how many followed."""
    calls: dict[str, Call] = {}

    def watch(name: str) -> Any:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            call = calls.setdefault(name, Call())
            if not call.times:
                call.leaves, call.spec = pytree.tree_flatten((args, kwargs))
            call.times += 1

        return model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)

    with hooked(watch(name) for name in names), evaluating(model), torch.no_grad():
        model(**traced_query(model, inputs))
    return {name: call for name, call in calls.items() if call.tensors}


def traced_query(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs with a mask that hides something, where the model takes one.

    Without one, or with nothing to hide, transformers leaves the mask out of the computation; exported files never do.
    """
    takes = inspect.signature(model.forward).parameters
    if "input_ids" not in inputs or "attention_mask" not in takes:
        return inputs
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).clone()
    if mask.shape[-1] > 1:
        mask[..., -1] = 0
    return {**inputs, "attention_mask": mask}


class _Alone(nn.Module):
    """A unit that takes its tensors one by one, and gives the first entry along the last axis of each of its tensors.

    A whole file hands its activations on in place; here, copying them out of the runtime could take longer than the
    unit itself.
    """

    def __init__(self, unit: nn.Module, call: Call) -> None:
        super().__init__()
        setattr(self, PLACE, unit)
        self.call = call

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Tensors ``(…, 1)`` of what the unit gives."""
        given = iter(values)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.call.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.call.spec)
        output = getattr(self, PLACE)(*args, **kwargs)
        return tuple(leaf[..., :1] for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class Free:
    """Axes of a call's tensors that change with the query: axis to its name, one mapping per tensor."""

    axes: tuple[Mapping[int, str], ...]


def free_axes(call: Call, other: Call) -> Free:
    """Axes in which two calls differ, equal pairs of sizes under one name: those that the whole file leaves free."""
    axes = []
    for left, right in zip(call.tensors, other.tensors, strict=True):
        pairs = enumerate(zip(left.shape, right.shape, strict=True))
        axes.append({axis: f"size_{a}_{b}" for axis, (a, b) in pairs if a != b})
    return Free(tuple(axes))


def sides_of(built: Built, name: str, call: Call, query: Inputs) -> Sides:
    """The neighbours of a unit: of one that takes one feature map and gives one. The model's own input has none.

    Args:
        built: the model that holds it.
        name: of the unit's module.
        call: how the model called it on the query.
        query: of the workload.
    """
    unit = built.model.get_submodule(name)
    layers = [key for key, module in unit.named_modules(prefix=name) if isinstance(module, nn.Conv2d)]
    if not layers or len(call.leaves) != 1 or call.tensors[0].dim() != 4:
        return NO_SIDES
    taken = call.tensors[0]
    with torch.no_grad():
        given = unit(taken.clone())
    if not isinstance(given, Tensor) or given.dim() != 4:
        return NO_SIDES
    first, last = (_static(built.codes.get(key)) for key in (layers[0], layers[-1]))
    is_query = any(torch.equal(taken, value) for value in query.values())
    return None if is_query else Side(tuple(taken.shape), first), Side(tuple(given.shape), last)


def _static(codes: Codes | None) -> Codes | None:
    return codes if codes and codes.precision == "int8" else None


def export_unit(built: Built, name: str, call: Call, free: Free, path: Path, sides: Sides = NO_SIDES) -> Path:
    """Write a unit as ONNX with its integers, and the inputs of its call beside it; returns the path of these.

    Args:
        built: the model that holds it.
        name: of the unit's module.
        call: how the model called it on one query of the workload.
        free: axes that stay free.
        path: the ONNX file to write.
        sides: neighbours to put it between.

    Raises:
        ExportError: torch cannot trace the unit alone.
    """
    inputs = {f"input_{i}": value.detach().clone() for i, value in enumerate(call.tensors)}
    if sides[0]:
        inputs["input_0"] = inputs["input_0"][:, :1]
    unit = copy.deepcopy(built.model.get_submodule(name))
    between = Between(unit, sides)
    axes = {key: found for key, found in zip(inputs, free.axes, strict=True) if found}
    graph = _graph(between if any(sides) else _Alone(unit, call), name, inputs, axes)
    codes = {
        f"{PLACE}{layer.removeprefix(name)}": made
        for layer, made in built.codes.items()
        if layer == name or layer.startswith(name + ".")
    }
    return _written(insert_codes(graph, {**codes, **between.codes()}, prefix=""), inputs, path)


def export_neighbours(side: Side | None, path: Path) -> Path:
    """Write the neighbours of a side with nothing between them, or nothing at all; returns the path of its inputs."""
    pair = Between(nn.Identity(), (side, side))
    inputs = {"input_0": torch.ones(side.shape[0], 1, *side.shape[2:]) if side else torch.ones(1, 1)}
    return _written(insert_codes(_graph(pair, "neighbours", inputs, {}), pair.codes(), prefix=""), inputs, path)


def _graph(alone: nn.Module, name: str, inputs: Inputs, axes: Axes) -> onnx.ModelProto:
    return traced_graph(alone.eval(), inputs, [], axes, f"{name} alone")


def _written(graph: onnx.ModelProto, inputs: Inputs, path: Path) -> Path:
    write_atomic(path, graph.SerializeToString())
    buffer = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {key: value.numpy() for key, value in inputs.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path.with_suffix(".npz"), buffer.getvalue())
    return path.with_suffix(".npz")
