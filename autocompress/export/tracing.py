"""How torch modules become ONNX graphs: the one place that calls the exporter."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from autocompress.errors import ExportError

OPSET = 17

#: Input or output name to its axes that are free, and their names.
Axes = Mapping[str, Mapping[int, str]]


def traceable(model: nn.Module) -> nn.Module:
    """A copy that computes as exported models do: plain attention, no cache."""
    traced = copy.deepcopy(model)
    if hasattr(traced, "set_attn_implementation"):
        traced.set_attn_implementation("eager")  # type: ignore[operator]  # plain matmuls: a smaller and faster graph than traced sdpa
    if hasattr(getattr(traced, "config", None), "use_cache"):
        traced.config.use_cache = False  # type: ignore[union-attr]  # traced, it is concatenations that nobody reads
    return traced.eval()


def traced_graph(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Axes, what: str
) -> onnx.ModelProto:
    """A module as a graph; weights keep their module names.

    Args:
        module: takes the inputs by position.
        inputs: example inputs by name, in order.
        outputs: names of the outputs; the exporter's own where empty.
        axes: free axes.
        what: is traced, for the message of an error.

    Raises:
        ExportError: torch cannot trace it.
    """
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                buffer,  # type: ignore[arg-type]  # the exporter of dynamo=False takes it
                input_names=list(inputs),
                output_names=list(outputs) or None,
                dynamic_axes={name: dict(found) for name, found in axes.items()},
                opset_version=OPSET,
                do_constant_folding=False,
                dynamo=False,  # about ten times faster than the dynamo exporter, which a search cannot afford
            )
    except Exception as fault:
        raise ExportError(f"torch cannot export {what} to ONNX: {fault}") from fault
    return onnx.load_model_from_string(buffer.getvalue())
