"""Oracles: `torch.nn.utils.prune`, loops over single weights, and counting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as reference

from autocompress.compressing.choices import FirstOnes, Kept
from autocompress.compressing.mask import (
    apply_masks,
    hold,
    importance,
    masked,
    seed_of,
    zero_masks,
    zero_share,
)
from autocompress.compressing.shape import shape
from autocompress.compressing.surgeon import surgeon
from autocompress.errors import ModelError, PlanError
from autocompress.layers import LayerTable
from autocompress.plan import GlobalMask, LayerPlan, Mask, Plan, Prune
from autocompress.tasks.task import Task
from tests import tiny
from tests.tiny import spread

SHARES = (0.0, 0.13, 0.5, 0.77, 0.995)


class Known(FirstOnes):
    """Second moments and Fishers that are made up, of the right shapes."""

    def operated(self, weight: Tensor, gram: Tensor, mask: Mask) -> Tensor:
        return surgeon(weight, gram, mask.sparsity, mask.n_m)

    def gram(self, layer: str) -> Tensor:
        columns = self.fisher(layer).shape[1]
        return spread(4 * columns, columns, seed_of(1, layer) % 1000)[1]

    def fisher(self, layer: str) -> Tensor:
        matrix = super().fisher(layer)
        return torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed_of(2, layer)))


def linear(rows: int = 10, columns: int = 24, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(columns, rows)


def conv(seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(6, 8, 3)


def weight_of(module: nn.Module) -> Tensor:
    return module.weight.detach().clone()


def plain(module: nn.Module, **settings: Any) -> Tensor:
    return masked(weight_of(module), Mask(**settings), None, None, 0)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("make", [linear, conv])
def test_unstructured_magnitude_is_torchs_l1_unstructured(make: Any, share: float) -> None:
    found = plain(make(), sparsity=share)
    assert torch.equal(found, reference.l1_unstructured(make(), "weight", share).weight)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("make", [linear, conv])
def test_unstructured_random_is_torchs_random_unstructured(make: Any, share: float) -> None:
    module = make()
    found = masked(weight_of(module), Mask(share, score="random"), None, None, seed=9)
    torch.manual_seed(9)
    assert torch.equal(found, reference.random_unstructured(module, "weight", share).weight)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize(("pattern", "axis"), [("rows", 0), ("columns", 1)])
@pytest.mark.parametrize("make", [linear, conv])
def test_whole_rows_and_columns_are_torchs_ln_structured(
    make: Any, pattern: str, axis: int, norm: int, share: float
) -> None:
    if round(share * make().weight.shape[axis]) == make().weight.shape[axis]:
        share = 0.6  # torch cannot take all rows
    found = plain(make(), sparsity=share, pattern=pattern, norm=norm)
    assert torch.equal(found, reference.ln_structured(make(), "weight", share, n=norm, dim=axis).weight)


@pytest.mark.parametrize(("pattern", "axis"), [("rows", 0), ("columns", 1)])
@pytest.mark.parametrize("make", [linear, conv])
def test_random_rows_and_columns_are_torchs_random_structured(make: Any, pattern: str, axis: int) -> None:
    module = make()
    found = masked(weight_of(module), Mask(0.4, pattern, "random"), None, None, seed=3)
    torch.manual_seed(3)
    assert torch.equal(found, reference.random_structured(module, "weight", 0.4, dim=axis).weight)


def test_threshold_by_hand() -> None:
    weight = torch.tensor([[0.5, -0.2, 0.1999], [-3.0, 0.0, 0.2]])
    found = masked(weight, Mask(threshold=0.2), None, None, 0)
    assert found.tolist() == torch.tensor([[0.5, -0.2, 0.0], [-3.0, 0.0, 0.2]]).tolist()


def worth(weight: Tensor, score: str, gram: Tensor, fisher: Tensor) -> Tensor:
    rows, columns = weight.shape
    value = torch.zeros(rows, columns)
    for i, j in itertools.product(range(rows), range(columns)):
        value[i, j] = {
            "magnitude": abs(weight[i, j]),
            "wanda": abs(weight[i, j]) * gram[j, j] ** 0.5,
            "fisher": weight[i, j] ** 2 * fisher[i, j],
        }[score]
    return value


@pytest.mark.parametrize("score", ["magnitude", "wanda", "fisher"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:6"])
def test_n_m_keeps_the_n_best_of_every_m_neighbours(pattern: str, score: str) -> None:
    weight, gram, fisher = weight_of(linear(5, 12)), spread(50, 12)[1], torch.rand(5, 12)
    value = worth(weight, score, gram, fisher)
    mask = Mask(pattern=pattern, score=score)  # type: ignore[arg-type]
    n, m = mask.n_m  # type: ignore[misc]
    wanted = torch.zeros_like(weight)
    for i, start in itertools.product(range(5), range(0, 12, m)):
        best = sorted(range(start, start + m), key=lambda j: float(value[i, j]), reverse=True)[:n]
        wanted[i, best] = weight[i, best]
    assert torch.equal(masked(weight, mask, gram, fisher, 0), wanted)


def test_n_m_of_a_convolution_counts_along_its_patches() -> None:
    weight = weight_of(nn.Conv2d(4, 3, 1 + 2 * 1))
    found = masked(weight, Mask(pattern="1:3"), None, None, 0)
    assert ((found.reshape(3, 12, 3) != 0).sum(dim=2) == 1).all()


def test_random_n_m_keeps_n_of_m_and_its_seed_decides_which() -> None:
    weight, mask = weight_of(linear()), Mask(pattern="2:4", score="random")
    found = masked(weight, mask, None, None, 1)
    assert ((found.reshape(-1, 4) != 0).sum(dim=1) == 2).all()
    assert torch.equal(found, masked(weight, mask, None, None, 1))
    assert not torch.equal(found, masked(weight, mask, None, None, 2))


@pytest.mark.parametrize("share", SHARES)
def test_wanda_compares_within_each_row(share: float) -> None:
    weight, gram = weight_of(linear()), spread(100, 24)[1]
    value = worth(weight, "wanda", gram, weight)
    wanted = weight.clone()
    for i in range(10):
        wanted[i, sorted(range(24), key=lambda j: float(value[i, j]))[: round(share * 24)]] = 0
    assert torch.equal(masked(weight, Mask(share, score="wanda"), gram, None, 0), wanted)


def test_fisher_compares_over_the_layer() -> None:
    weight, fisher = weight_of(linear()), torch.rand(10, 24)
    least = (weight**2 * fisher).reshape(-1).argsort()[:120]
    wanted = weight.clone()
    wanted.view(-1)[least] = 0
    assert torch.equal(masked(weight, Mask(0.5, score="fisher"), None, fisher, 0), wanted)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_obs_repairs_what_stays(pattern: str) -> None:
    inputs, gram = spread(200, 24)
    weight = weight_of(linear())
    share = None if pattern == "2:4" else 0.5
    repaired = masked(weight, Mask(share, pattern, "obs"), gram, None, 0)
    simple = masked(weight, Mask(share, pattern), None, None, 0)
    dense = inputs @ weight.T.double()
    assert int((repaired == 0).sum()) == int((simple == 0).sum()) == 120
    assert torch.linalg.norm(dense - inputs @ repaired.T.double()) < torch.linalg.norm(
        dense - inputs @ simple.T.double()
    )


def test_importance_of_wanda_is_magnitude_where_inputs_are_alike() -> None:
    weight = weight_of(linear())
    assert torch.equal(importance(weight, "wanda", gram=torch.eye(24)), importance(weight, "magnitude"))


def shaped(task: Task, plan: Plan) -> nn.Module:
    return shape(task.model, plan, tiny.table_of(task), Known(task.model))


def with_mask(name: str, **settings: Any) -> Plan:
    return Plan(layers={name: LayerPlan(mask=Mask(**settings))})


@pytest.mark.parametrize("share", SHARES)
def test_a_global_mask_is_torchs_global_unstructured(share: float) -> None:
    task = tiny.task_of(tiny.cnn())
    twin = tiny.cnn()
    layers = [(twin.first, "weight"), (twin.second, "weight"), (twin.head, "weight")]
    reference.global_unstructured(layers, reference.L1Unstructured, amount=share)
    small = shaped(task, Plan(mask=GlobalMask(share)))
    for name in ("first", "second", "head"):
        assert torch.equal(small.get_submodule(name).weight, twin.get_submodule(name).weight)


def test_a_global_mask_leaves_embeddings_shared_and_unused_weights_alone() -> None:
    task = tiny.any_task("gpt2")
    small = shaped(task, Plan(mask=GlobalMask(0.5)))
    assert torch.equal(small.lm_head.weight, task.model.lm_head.weight)
    assert torch.equal(small.transformer.wpe.weight, task.model.transformer.wpe.weight)
    table = tiny.table_of(task)
    names = [la.name for la in table.layers if la.allows("mask")]
    zeros = sum(int((small.get_submodule(name).weight == 0).sum()) for name in names)
    assert zeros == round(0.5 * sum(small.get_submodule(name).weight.numel() for name in names))


def test_a_global_fisher_mask_removes_the_least_of_all() -> None:
    task = tiny.task_of(tiny.mlp())
    small, known = shaped(task, Plan(mask=GlobalMask(0.3, "fisher"))), Known(task.model)
    values = {n: task.model.get_submodule(n).weight.detach() ** 2 * known.fisher(n) for n in ("first", "second")}
    highest = max(float(v[small.get_submodule(n).weight == 0].max()) for n, v in values.items())
    lowest = min(float(v[small.get_submodule(n).weight != 0].min()) for n, v in values.items())
    assert highest <= lowest


@pytest.mark.parametrize("score", ["magnitude", "random", "fisher"])
def test_a_global_mask_has_exactly_as_many_zeros_as_asked(score: str) -> None:
    task = tiny.task_of(tiny.mlp())
    small = shaped(task, Plan(mask=GlobalMask(0.37, score)))  # type: ignore[arg-type]
    assert sum(int((m.weight == 0).sum()) for m in (small.first, small.second)) == round(0.37 * (48 * 16 + 48 * 3))


def test_what_is_random_depends_on_seed_and_layer_alone() -> None:
    task = tiny.task_of(tiny.mlp())
    mask = LayerPlan(mask=Mask(0.5, score="random"))
    both = shaped(task, Plan(layers={"first": mask, "second": mask}))
    alone = shaped(task, Plan(layers={"second": mask}))
    other = shaped(task, Plan(layers={"second": mask}, seed=1))
    assert torch.equal(both.second.weight, alone.second.weight)
    assert not torch.equal(other.second.weight, alone.second.weight)


def test_biases_stay_and_so_does_the_dense_model() -> None:
    task = tiny.task_of(tiny.mlp())
    before = weight_of(task.model.first)
    small = shaped(task, with_mask("first", sparsity=0.5, pattern="rows"))
    assert torch.equal(small.first.bias, task.model.first.bias)
    assert torch.equal(task.model.first.weight, before)
    assert int((small.first.weight == 0).all(dim=1).sum()) == 24


@pytest.mark.parametrize("score", ["wanda", "fisher", "obs"])
def test_scores_are_those_of_the_inputs_and_rows_that_are_left(score: str) -> None:
    """Oracle: the pure function on the second moment and the Fisher cut by hand."""
    task = tiny.task_of(tiny.bert())
    name, group = "bert.encoder.layer.0.output.dense", "bert.encoder.layer.0.intermediate.dense/neurons"
    groups = {group: Prune(40, "magnitude", repair=False)}
    mask = Mask(0.5, score=score)  # type: ignore[arg-type]
    small = shaped(task, Plan(groups, {name: LayerPlan(mask=mask)}))
    known, dense = Known(task.model), task.model.get_submodule(name).weight.detach()
    found = masked(dense[:, :40], mask, known.gram(name)[:40, :40], known.fisher(name)[:, :40], 0)
    assert torch.equal(small.get_submodule(name).weight, found)


def test_given_zeros_change_nothing() -> None:
    task = tiny.task_of(tiny.mlp())
    plan = Plan(layers={"first": LayerPlan(mask=Mask(0.5, score="given"))}, init="0" * 64)
    assert torch.equal(shaped(task, plan).first.weight, task.model.first.weight)


@pytest.mark.parametrize("score", ["wanda", "obs"])
def test_a_grouped_convolution_has_no_second_moment(score: str) -> None:
    task = tiny.task_of(tiny.cnn())
    with pytest.raises(PlanError, match=rf"second: mask: score '{score}' cannot be had for a convolution of 2 groups"):
        shaped(task, with_mask("second", sparsity=0.5, score=score))


@pytest.mark.parametrize("plan", [with_mask("second", sparsity=0.1), Plan(mask=GlobalMask(0.1))], ids=["own", "global"])
def test_nan_weights_are_refused_by_layer(plan: Plan) -> None:
    task = tiny.task_of(tiny.mlp())
    table: LayerTable = tiny.table_of(task)
    model = tiny.mlp()
    with torch.no_grad():
        model.second.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="layer second: its weight holds NaN"):
        apply_masks(model, plan, table, Known(task.model), Kept())


def test_zero_masks_read_the_zeros_of_the_layers_that_the_plan_names() -> None:
    task = tiny.task_of(tiny.mlp())
    plan = with_mask("first", sparsity=0.5)
    small = shaped(task, plan)
    with torch.no_grad():
        small.second.weight[0, 0] = 0
    masks = zero_masks(small, plan)
    assert list(masks) == ["first.weight"]
    assert torch.equal(masks["first.weight"], small.first.weight != 0)


def test_zero_masks_of_a_global_mask_leave_shared_weights_out() -> None:
    task = tiny.any_task("gpt2")
    plan = Plan(mask=GlobalMask(0.5))
    small = shaped(task, plan)
    with torch.no_grad():
        small.lm_head.weight[0] = 0  # a row for padding, shared with the embedding
    masks = zero_masks(small, plan)
    assert "lm_head.weight" not in masks
    assert sum(int((~survives).sum()) for survives in masks.values()) == round(
        0.5 * sum(la.params - la.weight_shape[0] for la in tiny.table_of(task).layers if la.allows("mask"))
    )


def test_a_plan_without_masks_holds_nothing() -> None:
    task = tiny.task_of(tiny.mlp())
    assert zero_masks(task.model, Plan()) == {}


def test_hold_sets_zeros_again_and_nothing_else() -> None:
    task = tiny.task_of(tiny.mlp())
    plan = with_mask("first", pattern="2:4")
    small = shaped(task, plan)
    masks = zero_masks(small, plan)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter += 1
    moved = {name: value.detach().clone() for name, value in small.named_parameters()}
    hold(small, masks)
    for name, value in small.named_parameters():
        assert torch.equal(value, moved[name] * masks[name] if name in masks else moved[name])
    assert zero_share(small.first.weight) == 0.5
