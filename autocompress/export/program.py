"""The verb `export_program`: torch model + integers → one ``.pt2`` file that agrees with them.

The file is a traced program of torch's own operators, so that it loads without this package.
"""

from __future__ import annotations

import copy
import inspect
import io
import operator
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from autocompress.compressing.codes import Codes
from autocompress.compressing.quantize import simulate
from autocompress.errors import ExportError
from autocompress.export.export import agreement, codes_for, computing_precisions, write_verified
from autocompress.export.modules import coded_module
from autocompress.records import Artifact
from autocompress.runtimes import Device
from autocompress.runtimes.folding import writes
from autocompress.tasks.task import Task, logits_of

#: What a quantizer consists of; equal ones of one tensor become one.
SHARED = {
    torch.ops.aten.aminmax.default,
    operator.getitem,
    torch.ops.aten.neg.default,
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.div.Tensor,
    torch.ops.aten.eq.Scalar,
    torch.ops.aten.ones_like.default,
    torch.ops.aten.where.self,
    torch.ops.aten.round.default,
    torch.ops.aten.clamp.default,
    torch.ops.aten.to.dtype,
    torch.ops.aten.reshape.default,
}


class _Named(nn.Module):
    """Inputs by name and plain logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes_mask = "attention_mask" in inspect.signature(model.forward).parameters

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """The logits."""
        inputs = dict(inputs)
        if self.takes_mask and "input_ids" in inputs and "attention_mask" not in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])  # else decoders look for packed sequences
        return logits_of(self.model(**inputs))


def float_program(model: nn.Module, task: Task) -> ExportedProgram:
    """The model as a traced program with free batch (and the task's dynamic axes); inputs keep their names.

    Raises:
        ExportError: torch cannot trace the model.
    """
    return _traced(copy.deepcopy(model), task)


def _traced(model: nn.Module, task: Task) -> ExportedProgram:
    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False  # type: ignore[union-attr]  # traced, it is outputs that nobody reads
    inputs = task.trace_inputs()
    axes = {name: {0: "batch", **task.dynamic_axes.get(name, {})} for name in task.input_names}
    free = {name: dict.fromkeys(axes[name], Dim.DYNAMIC) for name in axes}
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _Named(model).eval(), ({name: inputs[name] for name in axes},), dynamic_shapes=(free,)
            )
    except Exception as fault:
        raise ExportError(f"torch cannot export {type(model).__name__} to a program: {fault}") from fault
    _fixed_axes(program, axes)
    return program


def _fixed_axes(program: ExportedProgram, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Raise `ExportError` for an axis that must be free, and that the model's code fixed."""
    nodes = {node.name: node for node in program.graph.nodes}
    for (name, free), node in zip(axes.items(), program.graph_signature.user_inputs, strict=True):
        shape = nodes[str(node)].meta["val"].shape
        fixed = [f"{axis} ({called})" for axis, called in free.items() if isinstance(shape[axis], int)]
        if fixed:
            raise ExportError(f"the traced program fixes axis {', '.join(fixed)} of input {name!r}, which must be free")


def program_of(model: nn.Module, codes: Mapping[str, Codes], task: Task, device: Device = "cpu") -> ExportedProgram:
    """The traced program whose layers in `codes` (by module name) compute from their integers.

    Args:
        model: shaped and recovered, in float; not edited.
        codes: integers by module name.
        task: gives example inputs, none of which stay in the program.
        device: whose kernels it uses.

    Raises:
        ExportError: a layer has no kernel on the device, or torch cannot trace the model.
    """
    twin = copy.deepcopy(model)
    for name, made in codes.items():
        twin.set_submodule(name, coded_module(name, twin.get_submodule(name), made, device).eval())
    program = _traced(twin, task)
    share_quantizers(program.graph)
    _slimmed(program)
    return program


def _slimmed(program: ExportedProgram) -> None:
    """Without checks of types that cannot differ, example inputs, and the paths and names of the code."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
        for key in ("stack_trace", "torch_fn", "source_fn_stack"):
            node.meta.pop(key, None)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    program.example_inputs = None


def share_quantizers(graph: fx.Graph) -> None:
    """Let layers that read one tensor with equal quantizers share the integers; edits the graph."""
    if any(writes(node) for node in graph.nodes):
        return
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target not in SHARED:
            continue
        key = (node.target, str(node.args), str(node.kwargs))
        known = first.setdefault(key, node)
        if known is not node:
            node.replace_all_uses_with(known)
            graph.erase_node(node)


def export_program(
    model: nn.Module,
    codes: Mapping[str, Codes],
    task: Task,
    path: Path,
    root: Path,
    fingerprint: str,
    runtime: str,
    *,
    device: Device = "cpu",
) -> Artifact:
    """Write the model with its integers to `path` and check the file against torch.

    Args:
        model: shaped and recovered, in float.
        codes: integers by module name, from `compressing.quantize`.
        task: gives example inputs.
        path: the ``.pt2`` file to write.
        root: run folder, to which `Artifact.path` is relative.
        fingerprint: of the plan.
        runtime: that the file is for; "torch" checks it, since all torch runtimes load one file.
        device: whose kernels the file uses, and where it is checked.

    Raises:
        ExportError: the file's outputs leave the torch model's by more than is allowed, or there is no such program.
    """
    codes = codes_for(codes, runtime)
    content = saved(program_of(model, codes, task, device))

    def compare(aside: Path) -> tuple[float, float]:
        deviation = agreement(simulate(model, codes), aside, task, "torch", device)
        return deviation, deviation

    precisions = computing_precisions(model, codes)
    return write_verified(content, path, root, fingerprint, compare, precisions, device)


def saved(program: ExportedProgram) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue()
