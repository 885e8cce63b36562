"""What of a model can be compressed: `survey` runs it once and writes down a LayerTable. Changes nothing."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.adapters import find_groups
from autocompress.errors import ModelError
from autocompress.layers import Group, Layer, LayerKind, LayerTable

KINDS: dict[type[nn.Module], LayerKind] = {nn.Linear: "linear", nn.Conv2d: "conv", nn.Embedding: "embedding"}

#: A factorization below this many features per side saves too little to run two kernels for.
MIN_FACTORIZED = 32


def survey(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> LayerTable:
    """Every Linear, Conv2d and Embedding, and the groups of the families that an adapter knows.

    Args:
        model: any module; it is run once, in evaluation mode, and not changed.
        example_inputs: keyword arguments of one workload query.

    Raises:
        ModelError: the model holds nothing to compress.
    """
    groups = find_groups(model)
    modules = {name: module for name, module in model.named_modules() if type(module) in KINDS}
    if not modules:
        raise ModelError(
            f"{type(model).__name__} has nothing to compress: no Linear, Conv2d or Embedding among its "
            f"{sum(1 for _ in model.modules())} modules"
        )
    macs = _count_macs(model, modules, example_inputs)
    shared = _shared_weights(modules)
    layers = tuple(_layer(name, module, groups, macs, shared) for name, module in modules.items())
    return LayerTable(layers, groups, sum(p.numel() for p in model.parameters()))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _layer(
    name: str, module: nn.Module, groups: tuple[Group, ...], macs: Mapping[str, int], shared: Mapping[str, str]
) -> Layer:
    kind = KINDS[type(module)]
    weight: Tensor = module.weight  # type: ignore[assignment]
    blocks = [g.name for g in groups if g.kind == "block" and name.startswith(g.name + ".")]
    why_not = {}
    if kind != "linear":
        why_not["factorize"] = f"only linear layers can be factorized, and this is {kind}"
    elif min(weight.shape) < MIN_FACTORIZED:
        why_not["factorize"] = f"its smaller side has {min(weight.shape)} features, under {MIN_FACTORIZED}"
    for fault in (
        f"its weight is shared with {shared[name]}" if name in shared else "",
        "its forward was not called on the example inputs" if name not in macs else "",
    ):
        if fault:
            why_not.update(factorize=fault, quantize=fault)
    params = sum(p.numel() for p in module.parameters(recurse=False))
    return Layer(name, kind, tuple(weight.shape), params, macs.get(name, 0), blocks[0] if blocks else "", why_not)


def _shared_weights(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in modules.items():
        owners[id(module.weight)].append(name)
    return {name: next(o for o in names if o != name) for names in owners.values() if len(names) > 1 for name in names}


def _count_macs(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Mapping[str, Tensor]
) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            weight: Tensor = module.weight  # type: ignore[assignment]
            positions = 0 if isinstance(module, nn.Embedding) else output.numel() // weight.shape[0]
            counts[name] += positions * weight.numel()

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in modules.items()]
    try:
        with evaluating(model), torch.inference_mode():
            model(**example_inputs)
    except Exception as fault:  # the model is the user's: whatever it raises
        raise ModelError(
            f"{type(model).__name__} cannot be called with the inputs {', '.join(example_inputs)} as keywords: "
            f"{type(fault).__name__}: {fault}"
        ) from fault
    finally:
        for handle in handles:
            handle.remove()
    return dict(counts)
