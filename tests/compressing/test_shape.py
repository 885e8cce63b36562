"""Oracles: the dense model, its masked twin (hooks, no cutting), a smaller architecture, the plan's own counts."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.shape import restore, shape
from autocompress.errors import PlanError
from autocompress.layers import Group, LayerTable
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, effective_layers
from autocompress.tasks.task import Task
from autocompress.weights import Stand, matrix_of, weight_of
from tests.tiny import (
    ALL_FAMILIES,
    Chooser,
    _one_thread,  # noqa: F401  (a fixture)
    any_task,
    bank_of,
    build_any,
    llama,
    mlp,
    quantized,
    run,
    table_of,
    task_of,
)

#: GPT-2's Conv1D becomes the Linear that computes the same, up to rounding.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@dataclass(frozen=True)
class Dense:
    """A dense model of one family, ready to be shaped."""

    name: str
    task: Task
    table: LayerTable
    choices: Chooser

    @property
    def model(self) -> nn.Module:
        return self.task.model

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.task.validation.batch(range(12))[0]

    def of(self, kind: str) -> list[Group]:
        return [group for group in self.table.groups if group.kind == kind]

    def shaped(self, plan: Plan) -> nn.Module:
        return shape(self.model, plan, self.table, self.choices)


@cache
def dense_of(name: str) -> Dense:
    task = any_task(name, layers=3)
    return Dense(name, task, table_of(task), Chooser(task))


@pytest.fixture(scope="module", params=ALL_FAMILIES)
def dense(request: pytest.FixtureRequest) -> Dense:
    return dense_of(request.param)


def half(dense: Dense, kind: str, repair: bool = False) -> Plan:
    """Half the structures of every group of one kind; the middle one where groups are removed as a whole."""
    groups = dense.of(kind)
    if groups[0].removable:
        return Plan({groups[1].name: Prune(0, repair=repair)})
    return Plan({group.name: Prune(group.size // 2, repair=repair) for group in groups})


def everything(dense: Dense, repair: bool = False) -> Plan:
    """Half the stream, some heads and neurons, the first block, one attention, one feed-forward part."""
    (first, second, third), plan = dense.table.blocks, dict(half(dense, "hidden", repair).groups)
    for group in dense.table.groups:
        if group.kind in ("heads", "neurons") and group.block in (second, third):
            plan[group.name] = Prune(max(1, group.size // 3), repair=repair)
    for gone, lost in ((f"{second}/attention", "heads"), (f"{third}/feed_forward", "neurons")):
        plan[gone] = Prune(0, repair=repair)
        plan = {name: p for name, p in plan.items() if not (name.startswith(gone.split("/")[0]) and lost in name)}
    return Plan({**plan, first: Prune(0, repair=repair)})


def norm_over(kept: Tensor) -> Callable[..., Tensor]:
    """A hook: the norm of the kept features alone, written out, and zeros elsewhere."""

    def hook(norm: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0][..., kept]
        if isinstance(norm, nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
            x = x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight[kept] + norm.bias[kept]
        else:
            x = x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight[kept]
        result = torch.zeros_like(output)
        result[..., kept] = x
        return result

    return hook


def without(lost: list[int]) -> Callable[..., tuple[Tensor, ...]]:
    """A hook: the inputs of a layer with some features set to zero."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features = args[0].clone()
        features[..., lost] = 0
        return (features, *args[1:])

    return hook


def input_of(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Any:
    """A hook: what came into a block goes out of it."""
    return args[0] if args else kwargs["hidden_states"]


@contextlib.contextmanager
def masked_twin(dense: Dense, plan: Plan) -> Iterator[nn.Module]:
    """The dense model with its full sizes, in which hooks let nothing see what the plan removes."""
    twin, handles = copy.deepcopy(dense.model), []
    for name, prune in plan.groups.items():
        group = dense.table.group(name)
        if group.kind == "block":
            handles.append(twin.get_submodule(name).register_forward_hook(input_of, with_kwargs=True))
        elif group.removable:
            writer = group.removes[-1]
            mean = dense.choices.mean_output(writer, 0) if prune.repair else torch.zeros(())
            handles.append(
                twin.get_submodule(writer).register_forward_hook(
                    lambda _m, _a, o, mean=mean: torch.zeros_like(o) + mean
                )
            )
        else:
            kept = dense.choices.kept(group, prune, plan.seed).tolist()
            lost = sorted(set(range(group.size)) - set(kept))
            for item in group.consumers:
                handles.append(twin.get_submodule(item.name).register_forward_pre_hook(without(item.positions(lost))))
            for item in group.carriers if group.kind == "hidden" else ():
                if not item.axis:
                    handles.append(twin.get_submodule(item.name).register_forward_hook(norm_over(torch.tensor(kept))))
    yield twin
    for handle in handles:
        handle.remove()


def twin_output(dense: Dense, plan: Plan) -> Tensor:
    with masked_twin(dense, plan) as twin, torch.inference_mode():
        return twin(**dense.inputs).logits


def test_an_empty_plan_is_bit_identical(dense: Dense) -> None:
    small = dense.shaped(Plan())
    assert small is not dense.model
    if dense.name == "gpt2":
        torch.testing.assert_close(run(small, dense.inputs), run(dense.model, dense.inputs), rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(run(small, dense.inputs), run(dense.model, dense.inputs))


def test_keeping_all_structures_changes_nothing(dense: Dense) -> None:
    plan = Plan({group.name: Prune(group.size) for group in dense.table.groups if not group.removable})
    assert torch.equal(run(dense.shaped(plan), dense.inputs), run(dense.shaped(Plan()), dense.inputs))


@pytest.mark.parametrize("kind", ["heads", "neurons", "hidden", "attention", "feed_forward", "block"])
def test_removed_is_masked(dense: Dense, kind: str) -> None:
    plan = half(dense, kind)
    expected = twin_output(dense, plan)
    torch.testing.assert_close(run(dense.shaped(plan), dense.inputs), expected, **CLOSE)
    assert (expected - run(dense.model, dense.inputs)).abs().max() > 1e-3  # the mask was felt


def test_everything_at_once_is_masked(dense: Dense) -> None:
    plan = everything(dense)
    assert {dense.table.group(name).kind for name in plan.groups} == {
        "heads", "neurons", "hidden", "attention", "feed_forward", "block",
    }  # fmt: skip
    torch.testing.assert_close(run(dense.shaped(plan), dense.inputs), twin_output(dense, plan), **CLOSE)


@pytest.mark.parametrize("kind", ["attention", "feed_forward"])
def test_a_removed_part_leaves_its_mean_where_repair_is_on(dense: Dense, kind: str) -> None:
    plan = half(dense, kind, repair=True)
    torch.testing.assert_close(run(dense.shaped(plan), dense.inputs), twin_output(dense, plan), **CLOSE)


def test_the_mean_of_a_removed_part_loses_hidden_dimensions_too(dense: Dense) -> None:
    block = dense.table.blocks[1]
    parts = {f"{block}/attention": Prune(0), f"{block}/feed_forward": Prune(0)}
    plan = Plan({**half(dense, "hidden").groups, **parts})
    torch.testing.assert_close(run(dense.shaped(plan), dense.inputs), twin_output(dense, plan), **CLOSE)


def test_all_blocks_can_go(dense: Dense) -> None:
    plan = Plan(dict.fromkeys(dense.table.blocks, Prune(0)))
    torch.testing.assert_close(run(dense.shaped(plan), dense.inputs), twin_output(dense, plan), **CLOSE)


def test_a_removed_block_is_the_model_that_never_had_it(dense: Dense) -> None:
    """The oracle is a two-layer architecture that is given the weights of blocks 0 and 2."""
    middle = dense.table.blocks[1]
    stem = middle.rsplit(".", 1)[0]
    weights = {}
    for name, value in dense.model.state_dict().items():
        if not name.startswith(f"{stem}.1."):
            weights[name.replace(f"{stem}.2.", f"{stem}.1.")] = value
    shallow = build_any(dense.name, layers=2)
    shallow.load_state_dict(weights, strict=True)
    small = dense.shaped(Plan({middle: Prune(0)}))
    torch.testing.assert_close(run(small, dense.inputs), run(shallow, dense.inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_the_bank_answers_for_every_kind_of_group(name: str, tmp_path: Path) -> None:
    dense = dense_of(name)
    small = shape(dense.model, everything(dense, repair=True), dense.table, bank_of(dense.task, tmp_path))
    assert torch.isfinite(run(small, dense.inputs)).all()


def test_the_bank_tells_the_mean_of_a_removed_part(tmp_path: Path) -> None:
    """The oracle is the plain average; images have no padding to leave out of it."""
    dense = dense_of("vit")
    plan, bank = half(dense, "attention", repair=True), bank_of(dense.task, tmp_path)
    stands = [
        m for m in shape(dense.model, plan, dense.table, bank).modules() if isinstance(m, Stand) and m.value is not None
    ]
    mean = dense.choices.mean_output(f"{dense.table.blocks[1]}.attention", 32)
    torch.testing.assert_close([stand.value.detach() for stand in stands], [mean], rtol=1e-4, atol=1e-5)


def test_fewer_hidden_dimensions_are_a_narrower_config() -> None:
    """The oracle is transformers' own Llama with hidden_size 24 and the same heads."""
    dense = dense_of("llama")
    plan, width = Plan({"model/hidden": Prune(24, repair=False)}), {"hidden_size": 24, "head_dim": 8}
    narrow = llama(3, **width)
    narrow.load_state_dict(dense.shaped(plan).state_dict(), strict=True)
    torch.testing.assert_close(run(narrow, dense.inputs), twin_output(dense, plan), **CLOSE)


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_repair_brings_the_consumers_output_closer(dense: Dense, kind: str) -> None:
    """On the calibration samples, in the last block: nothing before it was changed."""
    group = dense.of(kind)[-1]

    def consumers_output(model: nn.Module) -> Tensor:
        seen: list[Tensor] = []
        linear = model.get_submodule(group.consumers[0].name)
        handle = linear.register_forward_hook(lambda _m, _a, output: seen.append(output))
        run_inputs = dense.choices.inputs
        with torch.inference_mode():
            model(**run_inputs)
        handle.remove()
        return seen[0]

    wanted = consumers_output(dense.model)
    plans = [Plan({group.name: Prune(group.size * 2 // 3, repair=repair)}) for repair in (True, False)]
    repaired, plain = (float((consumers_output(dense.shaped(plan)) - wanted).norm()) for plan in plans)
    assert repaired < 0.9 * plain


def test_repair_of_the_stream_solves_every_reader(dense: Dense) -> None:
    group = dense.of("hidden")[0]
    plan = half(dense, "hidden", repair=True)
    small, columns = dense.shaped(plan), dense.choices.kept(group, plan.groups[group.name], plan.seed)
    tied = {"lm_head"} if dense.name == "gpt2" else set()
    for item in group.consumers:
        whole = matrix_of(dense.model.get_submodule(item.name))[:, columns]
        wanted = whole if item.name in tied else dense.choices.repaired(item.name, columns)
        torch.testing.assert_close(matrix_of(small.get_submodule(item.name)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "free"])
def test_a_shared_head_stays_shared(tie: bool) -> None:
    task = task_of(llama(tie_word_embeddings=tie))
    table = table_of(task)
    small = shape(task.model, Plan({"model/hidden": Prune(30)}), table, Chooser(task))
    assert (small.lm_head.weight is small.model.embed_tokens.weight) is tie
    assert tuple(small.lm_head.weight.shape) == (60, 30) == (small.lm_head.out_features, small.lm_head.in_features)
    assert small.model.embed_tokens.embedding_dim == 30


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_bits_part_a_shared_head_and_cut_both_alike(name: str) -> None:
    task = task_of(llama(tie_word_embeddings=True))
    table = table_of(task)
    groups = {"model/hidden": Prune(32)}
    tied = shape(task.model, Plan(groups), table, Chooser(task))
    small = shape(task.model, Plan(groups, quantized("int8-weights" if "embed" in name else "int8", name).layers),
                  table, Chooser(task))  # fmt: skip
    assert small.lm_head.weight is not small.model.embed_tokens.weight
    for made in (small.lm_head, small.model.embed_tokens):
        assert torch.equal(made.weight, tied.lm_head.weight)


def test_a_rank_of_a_shared_head_leaves_the_embedding() -> None:
    task = task_of(llama(tie_word_embeddings=True))
    table = table_of(task)
    plan = Plan(layers={"lm_head": LayerPlan(factorize=Factorize(48))})
    small = shape(task.model, plan, table, Chooser(task))
    assert torch.equal(small.model.embed_tokens.weight, task.model.model.embed_tokens.weight)
    inputs = task.test.batch(range(4))[0]
    torch.testing.assert_close(run(small, inputs), run(task.model, inputs), rtol=1e-4, atol=1e-4)  # 48 is full rank


def test_weights_that_were_stored_tied_fill_both_where_bits_part_them() -> None:
    task = task_of(llama(tie_word_embeddings=True))
    weights = {name: value + 1 for name, value in task.model.state_dict().items() if name != "lm_head.weight"}
    small = restore(task.model, quantized("int8", "lm_head"), table_of(task), weights)
    assert torch.equal(small.lm_head.weight, weights["model.embed_tokens.weight"])
    assert torch.equal(small.model.embed_tokens.weight, weights["model.embed_tokens.weight"])


def random_plan(table: LayerTable, draw: random.Random) -> Plan:
    """Any legal choice of structures and removals."""
    gone: set[str] = set()
    groups = {}
    for group in sorted(table.groups, key=lambda g: g.kind != "block"):
        if group.removable and draw.random() < 0.25 and not gone & set(group.removes):
            groups[group.name] = Prune(0, repair=draw.random() < 0.5)
            gone |= set(group.removes)
    for group in table.groups:
        inside = {item.name for item in (*group.producers, *group.consumers)} <= gone
        if not group.removable and not inside and draw.random() < 0.7:
            groups[group.name] = Prune(draw.randint(1, group.size), repair=draw.random() < 0.5)
    return Plan(groups, seed=draw.randint(0, 9))


@pytest.mark.parametrize("seed", range(8))
def test_every_layer_has_the_shape_that_the_plan_says(dense: Dense, seed: int) -> None:
    plan = random_plan(dense.table, random.Random(seed))
    small = dense.shaped(plan)
    modules = dict(small.named_modules())
    for eff in effective_layers(plan, dense.table):
        module = modules.get(eff.layer.name)
        if eff.removed:
            assert module is None or isinstance(module, Stand), eff.layer.name
        else:
            assert tuple(weight_of(module).shape) == eff.shape, eff.layer.name
    assert torch.isfinite(run(small, dense.inputs)).all()


def test_factors_have_the_size_that_the_plan_says(dense: Dense) -> None:
    pruned = everything(dense)
    ranks = {
        eff.layer.name: LayerPlan(factorize=Factorize(2))
        for eff in effective_layers(pruned, dense.table)
        if eff.layer.kind == "linear" and eff.layer.allows("factorize") and not eff.removed
    }
    plan = Plan(pruned.groups, ranks)
    small = dense.shaped(plan)
    for eff in effective_layers(plan, dense.table):
        if eff.layer.name in ranks:
            assert sum(part.weight.numel() for part in small.get_submodule(eff.layer.name)) == eff.weights
    assert torch.isfinite(run(small, dense.inputs)).all()


def test_modules_know_their_new_sizes(dense: Dense) -> None:
    for name, module in dense.shaped(everything(dense)).named_modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape), name
            assert module.bias is None or len(module.bias) == module.out_features, name
        if isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == tuple(module.weight.shape), name


def test_the_input_model_is_not_edited(dense: Dense) -> None:
    before = {name: value.clone() for name, value in dense.model.state_dict().items()}
    dense.shaped(everything(dense, repair=True))
    after = dense.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_copy_shares_no_memory_with_the_model(dense: Dense) -> None:
    owned = {p.data_ptr() for p in dense.model.parameters()}
    assert not owned & {p.data_ptr() for p in dense.shaped(everything(dense)).parameters()}


def saved(model: nn.Module) -> dict[str, Tensor]:
    """Weights as the pipeline stores them: shared ones once."""
    seen: set[int] = set()
    state = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            state[name] = value.detach().clone()
            seen.add(value.data_ptr())
    return state


@pytest.mark.parametrize("repair", [True, False])
def test_restore_brings_the_very_same_model_back(dense: Dense, repair: bool) -> None:
    plan = everything(dense, repair)
    small = dense.shaped(plan)
    again = restore(dense.model, plan, dense.table, saved(small))
    assert torch.equal(run(again, dense.inputs), run(small, dense.inputs))
    assert not again.training


def test_all_that_is_left_trains(dense: Dense) -> None:
    small = dense.shaped(everything(dense, repair=True)).train()
    inputs, targets = dense.task.train.batch(range(8))
    dense.task.loss(small(**inputs).logits, targets).backward()
    missing = [name for name, p in small.named_parameters() if p.grad is None]
    assert not [name for name in missing if "pooler" not in name]


def test_full_rank_is_the_dense_model(dense: Dense) -> None:
    rank = {
        la.name: LayerPlan(factorize=Factorize(min(la.weight_shape)))
        for la in dense.table.layers
        if la.kind == "linear" and la.allows("factorize")
    }
    assert len(rank) >= 12
    torch.testing.assert_close(
        run(dense.shaped(Plan(layers=rank)), dense.inputs), run(dense.model, dense.inputs), rtol=1e-3, atol=1e-3
    )


def test_a_pruned_layer_is_factorized_for_the_inputs_that_stay() -> None:
    dense = dense_of("bert")
    group, prune, settings = dense.of("neurons")[0], Prune(40, repair=False), Factorize(6)
    name = group.consumers[0].name
    kept = dense.choices.kept(group, prune, 0)
    assert kept.tolist() != list(range(40))
    plan = Plan({group.name: prune}, {name: LayerPlan(factorize=settings)})
    first, second = dense.shaped(plan).get_submodule(name)
    weight = dense.model.get_parameter(f"{name}.weight").detach()[:, kept]
    out_factor, in_factor = dense.choices.factors(weight, dense.choices.gram(name)[kept][:, kept], settings)
    torch.testing.assert_close(second.weight @ first.weight, out_factor @ in_factor, rtol=1e-4, atol=1e-5)


def test_factors_of_a_layer_without_bias() -> None:
    model = mlp()
    model.first = nn.Linear(32, 48, bias=False)
    split = type(task_of(mlp()).train)({"x": torch.randn(24, 32)}, torch.zeros(24, dtype=torch.long))
    task = task_of(model, train=split, validation=split, test=split)
    small = shape(model, Plan(layers={"first": LayerPlan(factorize=Factorize(4))}), table_of(task), Chooser(task))
    assert [part.bias for part in small.first] == [None, None]


def test_a_plan_for_another_model_is_refused() -> None:
    dense = dense_of("bert")
    plan = Plan({f"{dense.table.blocks[0]}.attentoin/heads": Prune(1)})
    with pytest.raises(PlanError, match=r"no such group; did you mean '.*attention/heads'"):
        dense.shaped(plan)


def test_a_part_of_a_removed_block_is_refused() -> None:
    dense = dense_of("vit")
    block = dense.table.blocks[1]
    for other in (f"{block}/attention", f"{block}.attention/heads"):
        with pytest.raises(PlanError, match=r"removed, so nothing else can be done to it"):
            dense.shaped(Plan({block: Prune(0), other: Prune(int("heads" in other))}))


def test_weights_of_another_plan_are_refused() -> None:
    dense = dense_of("bert")
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        restore(dense.model, Plan(), dense.table, saved(dense.shaped(everything(dense))))
