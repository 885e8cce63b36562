"""What of a model can be compressed: `survey` runs it and writes down a LayerTable. Changes nothing."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autocompress.adapters import find_groups, find_norms
from autocompress.errors import ModelError
from autocompress.layers import Group, Layer, LayerKind, LayerTable
from autocompress.plan.check import factor_size
from autocompress.weights import is_transposed_linear, tied_weights, weight_of

KINDS: dict[type[nn.Module], LayerKind] = {nn.Linear: "linear", nn.Conv2d: "conv", nn.Embedding: "embedding"}


def kind_of(module: nn.Module) -> LayerKind | None:
    """What a module is to the LayerTable, or None."""
    return "linear" if is_transposed_linear(module) else KINDS.get(type(module))


#: A factorization below this many features per side saves too little to run two kernels for.
MIN_FACTORIZED = 32


def survey(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> LayerTable:
    """Every Linear, Conv2d and Embedding, and the groups of the families that an adapter knows.

    Args:
        model: any module; it is run a few times, in evaluation mode, and not changed.
        example_inputs: keyword arguments of one workload query.

    Raises:
        ModelError: the model holds nothing to compress, or a weight that is no number.
    """
    modules = {name: module for name, module in model.named_modules() if kind_of(module)}
    if not modules:
        raise ModelError(
            f"{type(model).__name__} has nothing to compress: no Linear, Conv2d or Embedding among its "
            f"{sum(1 for _ in model.modules())} modules"
        )
    for name, module in modules.items():
        if not torch.isfinite(weight_of(module)).all():
            raise ModelError(f"layer {name}: its weight holds NaN or infinity")
    macs = _count_macs(model, modules, example_inputs)
    groups = find_groups(model, example_inputs)
    ties = {name: names for names in tied_weights(model) for name in names}
    layers = tuple(_layer(name, modules, groups, macs, ties.get(name, ())) for name in modules)
    return LayerTable(layers, groups, sum(p.numel() for p in model.parameters()), find_norms(model))


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


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Inside, hooks are in place; they are made one by one, so that none is left where making the next one fails."""
    made: list[RemovableHandle] = []
    try:
        made.extend(handles)
        yield
    finally:
        for handle in made:
            handle.remove()


def _layer(
    name: str,
    modules: Mapping[str, nn.Module],
    groups: tuple[Group, ...],
    macs: Mapping[str, int],
    tie: tuple[str, ...],
) -> Layer:
    module = modules[name]
    kind = kind_of(module)
    assert kind is not None
    weight = weight_of(module)
    blocks = [g.name for g in groups if g.kind == "block" and name.startswith(g.name + ".")]
    why_not = {}
    if kind == "embedding":
        why_not["mask"] = "embeddings are looked up, so their zeros save nothing"
    reason = _not_factorized(kind, module)
    if reason:
        why_not["factorize"] = reason
    if tie:
        fault = f"its weight is shared with {next(other for other in tie if other != name)}"
        kinds = {kind_of(modules[other]) if other in modules else None for other in tie}
        why_not.update(dict.fromkeys(_barred_by_tie(kind, kinds), fault))
    if name not in macs:
        fault = "its forward was not called on the example inputs"
        why_not.update(factorize=fault, quantize=fault, mask=fault)
    params = sum(p.numel() for p in module.parameters(recurse=False))
    groups_of = module.groups if isinstance(module, nn.Conv2d) else 1
    block, shares = blocks[0] if blocks else "", tie[0] if tie and tie[0] != name else ""
    return Layer(name, kind, tuple(weight.shape), params, macs.get(name, 0), block, why_not, groups_of, shares)


def _barred_by_tie(kind: LayerKind, kinds: Collection[LayerKind | None]) -> tuple[str, ...]:
    """Techniques that a layer goes without for a weight that layers of some kinds share.

    A language model's head gets a weight of its own where it takes bits or a rank, and the embedding keeps its rows:
    looking up a few of them costs no time. Factors of the embedding would be bytes beside the head's, for nothing.
    """
    if set(kinds) != {"embedding", "linear"}:
        return ("factorize", "quantize", "mask")
    return ("mask",) if kind == "linear" else ("factorize", "mask")


def _not_factorized(kind: LayerKind, module: nn.Module) -> str:
    """Why two factors cannot stand for the layer's weight, or ""."""
    shape = tuple(weight_of(module).shape)
    if kind == "linear":
        least = min(shape)
        return f"its smaller side has {least} features, under {MIN_FACTORIZED}" if least < MIN_FACTORIZED else ""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "its rows are rescaled where they are read (max_norm)"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"it is a convolution in {module.groups} groups"
    saves = factor_size(shape) < math.prod(shape)
    return "" if saves else "two factors of rank 1 are no smaller than its weight"


def _count_macs(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Mapping[str, Tensor]
) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            weight = weight_of(module)
            positions = 0 if isinstance(module, nn.Embedding) else output.numel() // weight.shape[0]
            counts[name] += positions * weight.numel()

        return module.register_forward_hook(hook)

    handles = (watch(name, module) for name, module in modules.items())
    try:
        with hooked(handles), evaluating(model), torch.inference_mode():
            model(**example_inputs)
    except Exception as fault:  # the model is the user's: whatever it raises
        raise ModelError(
            f"{type(model).__name__} cannot be called with the inputs {', '.join(example_inputs)} as keywords: "
            f"{type(fault).__name__}: {fault}"
        ) from fault
    return dict(counts)
