"""Oracles: the dense model, its masked twin, a smaller architecture with the surviving weights, the plan's counts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocompress.compress.factorize import factorize
from autocompress.compress.prune import columns_of
from autocompress.compress.shape import Passthrough, restore, shape
from autocompress.errors import PlanError
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, effective_layers
from tests.compress.conftest import Family
from tests.tiny import bank_of, build, mlp, run, task_of


def structures(family: Family, repair: bool, score: str = "obs") -> Plan:
    """Half the heads of every block but the last, and three eighths of the neurons of every block."""
    groups = {}
    for group in family.table.groups:
        if group.kind == "heads" and not group.block.endswith("2"):
            groups[group.name] = Prune(group.size // 2, score, repair)
        if group.kind == "neurons":
            groups[group.name] = Prune(group.size * 3 // 8, score, repair)
    return Plan(groups)


def everything(family: Family) -> Plan:
    """Structures, a removed block, and low rank on pruned and on untouched layers."""
    blocks = family.table.blocks
    pruned = structures(family, repair=True).groups
    groups = {name: prune for name, prune in pruned.items() if not name.startswith(blocks[1])}
    layers = {}
    for eff in effective_layers(Plan(groups), family.table):
        if eff.layer.block == blocks[0] and eff.layer.allows("factorize"):
            layers[eff.layer.name] = LayerPlan(Factorize(5))
    return Plan({**groups, blocks[1]: Prune(0)}, layers)


def masked_twin(family: Family, plan: Plan) -> nn.Module:
    """The dense model with the columns that read a removed structure set to zero: nothing downstream sees it."""
    twin = copy.deepcopy(family.task.model)
    for group in family.table.groups:
        if group.name in plan.groups:
            kept = columns_of(family.bank.kept(group, plan.groups[group.name]), group.width)
            for name in group.consumers:
                weight = twin.get_parameter(f"{name}.weight")
                gone = torch.ones(weight.shape[1], dtype=torch.bool)
                gone[kept] = False
                weight.data[:, gone] = 0
    return twin


def samples(family: Family) -> dict[str, torch.Tensor]:
    return family.task.validation.batch(range(12))[0]


def test_an_empty_plan_is_bit_identical(family: Family) -> None:
    small = shape(family.task.model, Plan(), family.table, family.bank)
    assert small is not family.task.model
    assert torch.equal(run(small, samples(family)), run(family.task.model, samples(family)))


@pytest.mark.parametrize("score", ["obs", "magnitude"])
def test_removed_is_masked(family: Family, score: str) -> None:
    plan = structures(family, repair=False, score=score)
    small = shape(family.task.model, plan, family.table, family.bank)
    expected = run(masked_twin(family, plan), samples(family))
    torch.testing.assert_close(run(small, samples(family)), expected, rtol=1e-4, atol=1e-5)
    assert (expected - run(family.task.model, samples(family))).abs().max() > 1e-2  # the mask was felt


def test_keeping_all_structures_changes_nothing(family: Family) -> None:
    plan = Plan({group.name: Prune(group.size) for group in family.table.groups})
    small = shape(family.task.model, plan, family.table, family.bank)
    assert torch.equal(run(small, samples(family)), run(family.task.model, samples(family)))


def test_a_removed_block_is_the_model_that_never_had_it(family: Family) -> None:
    """The oracle is a two-layer architecture that is given the weights of blocks 0 and 2."""
    middle = family.table.blocks[1]
    stem = middle.rsplit(".", 1)[0]
    weights = {}
    for name, value in family.task.model.state_dict().items():
        if not name.startswith(f"{stem}.1."):
            weights[name.replace(f"{stem}.2.", f"{stem}.1.")] = value
    shallow = build(family.name, layers=2)
    shallow.load_state_dict(weights, strict=True)
    small = shape(family.task.model, Plan({middle: Prune(0)}), family.table, family.bank)
    torch.testing.assert_close(run(small, samples(family)), run(shallow, samples(family)), rtol=1e-5, atol=1e-6)


def test_sizes_are_what_the_plan_says(family: Family) -> None:
    plan = everything(family)
    small = shape(family.task.model, plan, family.table, family.bank)
    modules = dict(small.named_modules())
    for eff in effective_layers(plan, family.table):
        module = modules.get(eff.layer.name)
        found = 0
        if isinstance(module, nn.Sequential):
            found = sum(part.weight.numel() for part in module)
        elif module is not None:
            found = module.weight.numel()
        assert found == eff.weights, eff.layer.name
    assert isinstance(modules[family.table.blocks[1]], Passthrough)


def test_linears_know_their_new_sizes(family: Family) -> None:
    small = shape(family.task.model, everything(family), family.table, family.bank)
    for name, module in small.named_modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape), name
            assert module.bias is None or len(module.bias) == module.out_features, name


def test_the_input_model_is_not_edited(family: Family) -> None:
    before = {name: value.clone() for name, value in family.task.model.state_dict().items()}
    shape(family.task.model, everything(family), family.table, family.bank)
    after = family.task.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_copy_shares_no_memory_with_the_model(family: Family) -> None:
    small = shape(family.task.model, everything(family), family.table, family.bank)
    owned = {p.data_ptr() for p in family.task.model.parameters()}
    assert not owned & {p.data_ptr() for p in small.parameters()}


def test_restore_brings_the_very_same_model_back(family: Family) -> None:
    plan = everything(family)
    small = shape(family.task.model, plan, family.table, family.bank)
    again = restore(family.task.model, plan, family.table, small.state_dict())
    assert torch.equal(run(again, samples(family)), run(small, samples(family)))
    assert not again.training


def test_it_trains_after_removal(family: Family) -> None:
    small = shape(family.task.model, everything(family), family.table, family.bank).train()
    inputs, targets = family.task.train.batch(range(8))
    nn.functional.cross_entropy(small(**inputs).logits, targets).backward()
    without = [name for name, p in small.named_parameters() if p.grad is None]
    assert not [name for name in without if "pooler" not in name]


@pytest.mark.parametrize("family", ["bert", "vit"], indirect=True)
def test_repair_brings_the_consumers_output_closer(family: Family) -> None:
    """On the calibration samples, in the last feed-forward part: nothing before it was changed."""
    group = next(g for g in reversed(family.table.groups) if g.kind == "neurons")
    inputs = family.task.calibration().batch(range(24))[0]
    seen: dict[str, torch.Tensor] = {}

    def consumers_output(model: nn.Module) -> torch.Tensor:
        linear = model.get_submodule(group.consumers[0])
        handle = linear.register_forward_hook(lambda _m, _a, output: seen.update(output=output))
        with torch.inference_mode():
            model(**inputs)
        handle.remove()
        return seen["output"]

    dense = consumers_output(family.task.model)
    errors = []
    for repair in (True, False):
        plan = Plan({group.name: Prune(24, repair=repair)})
        small = shape(family.task.model, plan, family.table, family.bank)
        errors.append(float((consumers_output(small) - dense).norm()))
    assert errors[0] < errors[1]


def test_full_rank_is_the_dense_model(family: Family) -> None:
    rank = {la.name: LayerPlan(Factorize(min(la.weight_shape))) for la in family.table.layers if la.allows("factorize")}
    assert len(rank) >= 18
    small = shape(family.task.model, Plan(layers=rank), family.table, family.bank)
    torch.testing.assert_close(
        run(small, samples(family)), run(family.task.model, samples(family)), rtol=1e-3, atol=1e-4
    )


def test_a_pruned_layer_is_factorized_for_the_inputs_that_stay(family: Family) -> None:
    group = next(g for g in family.table.groups if g.kind == "neurons")
    name, prune = group.consumers[0], Prune(40, repair=False)
    kept = family.bank.kept(group, prune)
    assert kept.tolist() != list(range(40))
    plan = Plan({group.name: prune}, {name: LayerPlan(Factorize(6))})
    first, second = shape(family.task.model, plan, family.table, family.bank).get_submodule(name)
    weight = family.task.model.get_parameter(f"{name}.weight").detach()[:, kept]
    out_factor, in_factor = factorize(weight, family.bank.gram(name)[kept][:, kept], 6)
    torch.testing.assert_close(second.weight @ first.weight, out_factor @ in_factor, rtol=1e-4, atol=1e-5)


def test_factors_of_a_layer_without_bias(tmp_path: object) -> None:
    model = mlp()
    model.first = nn.Linear(32, 48, bias=False)
    task = task_of(mlp())
    inputs = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    split = type(task.train)({"x": inputs}, task.train.targets)
    task = task_of(model, train=split, validation=split, test=split)
    bank = bank_of(task, tmp_path)
    small = shape(model, Plan(layers={"first": LayerPlan(Factorize(4))}), bank.table, bank)
    assert [part.bias for part in small.first] == [None, None]


def test_a_plan_for_another_model_is_refused(family: Family) -> None:
    plan = Plan({f"{family.table.blocks[0]}.attentoin/heads": Prune(1)})
    with pytest.raises(PlanError, match=r"no such group; did you mean '.*attention/heads'"):
        shape(family.task.model, plan, family.table, family.bank)


def test_weights_of_another_plan_are_refused(family: Family) -> None:
    small = shape(family.task.model, everything(family), family.table, family.bank)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        restore(family.task.model, Plan(), family.table, small.state_dict())
