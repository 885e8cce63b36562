"""Zeros in weights that keep their shape: unstructured, N:M, rows and columns; and how training leaves them alone.

The choice is made on tensors; `apply_masks` is the one place that edits modules by it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.compressing.choices import Choices, Kept
from autocompress.compressing.surgeon import surgeon
from autocompress.errors import ModelError
from autocompress.layers import LayerTable
from autocompress.plan import GlobalMask, Mask, Plan
from autocompress.plan.check import removed_layers
from autocompress.weights import matrix_of, weight_of


def least(scores: Tensor, count: int) -> Tensor:
    """Survivors, a mask shaped like `scores`, when the `count` least of them go."""
    survives = torch.ones(scores.numel(), dtype=torch.bool)
    if count:
        survives[scores.reshape(-1).topk(count, largest=False, sorted=False).indices] = False
    return survives.reshape(scores.shape)


def least_overall(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Survivors per name when the `count` least scores of all of them together go."""
    survives = least(torch.cat([score.reshape(-1) for score in scores.values()]), count)
    parts = survives.split([score.numel() for score in scores.values()])  # type: ignore[no-untyped-call]
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def least_per_row(scores: Tensor, count: int) -> Tensor:
    """Survivors ``(out, in)`` when the `count` least scores of each row go."""
    goes = scores.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, goes, False)


def most_of_each(scores: Tensor, n: int, m: int) -> Tensor:
    """Survivors ``(out, in)`` when of every `m` neighbouring inputs the `n` with the highest scores stay."""
    stays = scores.reshape(-1, m).topk(n, dim=1).indices
    survives = torch.zeros(scores.numel() // m, m, dtype=torch.bool).scatter_(1, stays, True)
    return survives.reshape(scores.shape)


def whole_slices(weight: Tensor, sparsity: float, axis: int, sizes: Tensor) -> Tensor:
    """Survivors, shaped like the weight, when the share of slices along `axis` with the least `sizes` goes whole."""
    count = weight.shape[axis]
    survives = torch.zeros(count, dtype=torch.bool)
    survives[sizes.topk(count - round(sparsity * count)).indices] = True
    return survives.reshape([-1 if i == axis else 1 for i in range(weight.dim())]).expand(weight.shape)


def importance(
    weight: Tensor, score: str, gram: Tensor | None = None, fisher: Tensor | None = None, seed: int = 0
) -> Tensor:
    """What each weight is worth by a score; ``(out, in)``, the least goes first.

    Args:
        weight: the matrix.
        score: "magnitude" |w|; "wanda" |w|·√G_jj (Sun et al. 2023); "fisher" w²·F; "random", drawn with `seed`.
        gram: second moment of the inputs ``(in, in)``; for "wanda" only.
        fisher: mean squared gradient of each weight ``(out, in)``; for "fisher" only.
        seed: for "random" only.
    """
    if score == "random":
        return -torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    if score == "fisher":
        assert fisher is not None
        return weight.pow(2) * fisher
    if score == "wanda":
        assert gram is not None
        return weight.abs() * gram.diagonal().sqrt().to(weight.dtype)
    return weight.abs()


def seed_of(seed: int, layer: str) -> int:
    """Seed of what is random in one layer: it depends on the plan's seed and the layer's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{layer}".encode()).digest()[:6])


def masked(weight: Tensor, mask: Mask, gram: Tensor | None, fisher: Tensor | None, seed: int) -> Tensor:
    """A weight with the zeros that a mask asks for, its other values unchanged, but for score "obs".

    Args:
        weight: ``(out, in)`` or ``(out, in, kh, kw)``; a convolution's inputs are those of one patch, in·kh·kw.
        mask: the settings; "unstructured" zeros are spread over the layer, those of "wanda" evenly over its rows.
        gram: second moment of the inputs, for "wanda" and "obs".
        fisher: mean squared gradient of each weight, shaped like the matrix, for "fisher".
        seed: for "random".
    """
    matrix = weight.reshape(len(weight), -1)
    if mask.pattern in ("rows", "columns"):
        survives = _structured(weight, mask, seed)
    elif mask.score == "obs":
        assert gram is not None
        return surgeon(matrix, gram, mask.sparsity, mask.n_m).reshape(weight.shape)
    elif mask.threshold is not None:
        survives = weight.abs() >= mask.threshold
    else:
        scores = importance(matrix, mask.score, gram, fisher, seed)
        if mask.n_m:
            survives = most_of_each(scores, *mask.n_m)
        elif mask.score == "wanda":
            survives = least_per_row(scores, round((mask.sparsity or 0.0) * matrix.shape[1]))
        else:
            survives = least(scores, round((mask.sparsity or 0.0) * matrix.numel()))
    return weight.masked_fill(~survives.reshape(weight.shape), 0.0)


def _structured(weight: Tensor, mask: Mask, seed: int) -> Tensor:
    axis = 0 if mask.pattern == "rows" else 1
    if mask.score == "random":
        sizes = torch.rand(weight.shape[axis], generator=torch.Generator().manual_seed(seed))
    else:
        others = [i for i in range(weight.dim()) if i != axis]
        sizes = torch.linalg.vector_norm(weight, ord=mask.norm, dim=others)
    return whole_slices(weight, mask.sparsity or 0.0, axis, sizes)


def maskable(plan: Plan, table: LayerTable) -> list[str]:
    """Linears and convolutions that a plan leaves in the model and whose weights may be zero."""
    gone = removed_layers(plan, table)
    return [la.name for la in table.layers if la.kind != "embedding" and la.allows("mask") and la.name not in gone]


def apply_masks(model: nn.Module, plan: Plan, table: LayerTable, choices: Choices, kept: Kept) -> None:
    """Set the zeros that the plan asks for; edits the model, which is shaped already.

    Biases stay, as in `torch.nn.utils.prune`. Zeros that are "given" come with the plan's init.

    Raises:
        ModelError: a weight is NaN or infinite.
    """
    if plan.mask:
        _mask_all(model, plan.mask, maskable(plan, table), plan.seed, choices, kept)
    for name, layer_plan in plan.layers.items():
        if layer_plan.mask and layer_plan.mask.score != "given":
            _mask_layer(model.get_submodule(name), name, layer_plan.mask, plan.seed, (choices, kept))


def _finite_weight(module: nn.Module, name: str) -> Tensor:
    weight = weight_of(module)
    if not torch.isfinite(weight).all():
        raise ModelError(f"layer {name}: its weight holds NaN or infinity, so no weight can be called the least")
    return weight


def _mask_layer(module: nn.Module, name: str, mask: Mask, seed: int, known: tuple[Choices, Kept]) -> None:
    choices, kept = known
    weight = _finite_weight(module, name)
    gram = fisher = None
    if mask.score in ("wanda", "obs"):
        gram = kept.gram(choices.gram(name), name)
    if mask.score == "obs" and gram is not None:
        _write(module, choices.operated(matrix_of(module), gram, mask).reshape(weight.shape))
        return
    if mask.score == "fisher":
        fisher = kept.part(choices.fisher(name), name)
    _write(module, masked(weight, mask, gram, fisher, seed_of(seed, name)))


def _mask_all(model: nn.Module, mask: GlobalMask, names: list[str], seed: int, choices: Choices, kept: Kept) -> None:
    modules = {name: model.get_submodule(name) for name in names}
    scores = {}
    for name, module in modules.items():
        _finite_weight(module, name)
        fisher = kept.part(choices.fisher(name), name) if mask.score == "fisher" else None
        scores[name] = importance(matrix_of(module), mask.score, fisher=fisher, seed=seed_of(seed, name))
    count = round(mask.sparsity * sum(score.numel() for score in scores.values()))
    for name, survives in least_overall(scores, count).items():
        weight = weight_of(modules[name])
        _write(modules[name], weight.masked_fill(~survives.reshape(weight.shape), 0.0))


def _write(module: nn.Module, weight: Tensor) -> None:
    parameter = module.weight
    assert isinstance(parameter, nn.Parameter)
    with torch.no_grad():
        parameter.copy_(weight)


def zero_masks(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """The zeros that a plan asks to keep, read off a model's weights: parameter name to a mask of the survivors.

    Of a plan with a mask over all layers, every linear and convolution with a zero counts; a weight that several
    modules share is left out, since no mask may touch it.
    """
    names = [name for name, lp in plan.layers.items() if lp.mask]
    if plan.mask:
        found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        owners = Counter(id(m.weight) for m in model.modules() if isinstance(getattr(m, "weight", None), nn.Parameter))
        names = [name for name, module in found.items() if owners[id(module.weight)] == 1]
    masks = {f"{name}.weight": model.get_parameter(f"{name}.weight").detach() != 0 for name in names}
    return {name: survives for name, survives in masks.items() if not survives.all()}


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what did not survive to zero again, after a step of training; edits the model.

    Args:
        model: has the parameters that `masks` names.
        masks: parameter name to a mask of the survivors, of the parameter's shape.
    """
    with torch.no_grad():
        for name, survives in masks.items():
            model.get_parameter(name).masked_fill_(~survives, 0.0)


def zero_share(weight: Tensor) -> float:
    """Share of a weight's values that are zero, in [0, 1]."""
    return (weight.numel() - int(torch.count_nonzero(weight))) / weight.numel()
