"""Oracles: the pure functions whose results the bank stores, a bank in another folder, and counted computations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing import jobs
from autocompress.compressing.bank import Bank
from autocompress.compressing.calibrate import gram_matrices
from autocompress.compressing.factorize import factors, rank_errors
from autocompress.compressing.fisher import structure_fisher, weight_fisher
from autocompress.compressing.prune import Consumer, repair, structure_columns, structure_order
from autocompress.compressing.shape import shape
from autocompress.compressing.store import Store
from autocompress.errors import DataError, ModelError, PlanError
from autocompress.layers import Group, LayerTable
from autocompress.plan import Factorize, LayerPlan, Plan, Prune
from autocompress.plan.choices import STRUCTURE_SCORES
from autocompress.tasks.task import Task
from autocompress.weights import matrix_of, weight_of
from tests.tiny import bank_of, bert, build, cnn, table_of, task_of

BLOCK = "bert.encoder.layer.0"
NEURONS = f"{BLOCK}.intermediate.dense/neurons"
DOWN = f"{BLOCK}.output.dense"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of matrix work is done."""
    calls: Counter[str] = Counter()

    def count(kind: str, compute):
        def wrapped(settings, inputs):
            calls[kind] += 1
            return compute(settings, inputs)

        return wrapped

    monkeypatch.setattr(jobs, "COMPUTE", {kind: count(kind, compute) for kind, compute in jobs.COMPUTE.items()})
    return calls


class Plain:
    """`Choices` by the pure functions, with nothing stored."""

    def __init__(self, task: Task, table: LayerTable) -> None:
        self.model, self.table, self.task = task.source, table, task
        names = [la.name for la in table.layers if la.kind != "embedding" and la.macs]
        self.grams = {k: v.float() for k, v in gram_matrices(self.model, names, task.calibration()).items()}

    def gram(self, layer: str) -> Tensor:
        return self.grams[layer]

    def kept(self, group: Group, prune: Prune, seed: int) -> Tensor:
        return order_of(self.model, group, self.grams, prune.score)[-prune.keep :].sort().values

    def repaired(self, layer: str, columns: Tensor) -> Tensor:
        return repair(matrix_of(self.model.get_submodule(layer)), self.grams[layer], columns)

    def factors(self, weight: Tensor, gram: Tensor, settings: Factorize) -> tuple[Tensor, Tensor]:
        return factors(weight, gram, settings)


def order_of(model: nn.Module, group: Group, grams: dict[str, Tensor], score: str) -> Tensor:
    consumers = [
        Consumer(matrix_of(model.get_submodule(c.name)), grams[c.name], structure_columns(c, group.size))
        for c in group.consumers
    ]
    return structure_order(score, consumers)


def everything(table: LayerTable) -> Plan:
    """Three quarters of all counted structures, and ranks where there are none to prune."""
    groups = {g.name: Prune(g.size * 3 // 4) for g in table.groups if g.kind in ("heads", "neurons", "hidden")}
    ranks = {la.name: LayerPlan(factorize=Factorize(5)) for la in table.layers if la.name.endswith(("query", "q_proj"))}
    return Plan(groups, ranks)


def same(left: nn.Module, right: nn.Module) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_candidate_is_the_same_from_any_folder_and_from_pure_functions(tmp_path: Path, family: str) -> None:
    task = task_of(build(family))
    table = table_of(task)
    found = [shape(task.model, everything(table), table, Bank(tmp_path / name, task, table)) for name in "aab"]
    found.append(shape(task.model, everything(table), table, Plain(task, table)))
    assert all(same(found[0], other) for other in found[1:])


def test_a_second_assembly_computes_nothing(tmp_path: Path, counted: Counter[str]) -> None:
    task = task_of(bert())
    table = table_of(task)
    for _ in range(2):
        shape(task.model, everything(table), table, Bank(tmp_path, task, table))
        assert counted == {"order": 5, "repair": 13, "decomposition": 2}


def test_the_menu_of_ranks_takes_one_decomposition(tmp_path: Path, counted: Counter[str]) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    weight, gram = weight_of(bank.model.get_submodule(DOWN)), bank.gram(DOWN)
    for method in ("activation-aware", "plain"):
        for rank in (1, 7, 32):
            settings = Factorize(rank, method)
            made, expected = bank.factors(weight, gram, settings), factors(weight, gram, settings)
            assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert counted == {"decomposition": 2}


def test_gram_is_what_calibration_gives(tmp_path: Path) -> None:
    task = task_of(bert())
    expected = gram_matrices(task.model, [DOWN], task.calibration())[DOWN]
    assert torch.equal(bank_of(task, tmp_path).gram(DOWN), expected.float())


def test_gram_of_a_convolution_is_that_of_its_patches_and_of_an_embedding_the_identity(tmp_path: Path) -> None:
    assert bank_of(task_of(cnn()), tmp_path).gram("first").shape == (9, 9)
    gram = bank_of(task_of(bert()), tmp_path).gram("bert.embeddings.word_embeddings")
    assert torch.equal(gram, torch.eye(32))


def test_one_pass_fills_the_moments_of_all_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(bert())
    bank_of(task, tmp_path).gram(DOWN)
    monkeypatch.setattr("autocompress.compressing.passes.gram_matrices", None)
    bank = bank_of(task, tmp_path)
    assert all(bank.gram(la.name).isfinite().all() for la in bank.table.layers if la.macs)


@pytest.mark.parametrize("score", ["obs", "magnitude", "wanda"])
@pytest.mark.parametrize("kind", ["heads", "neurons", "hidden"])
def test_kept_is_the_end_of_the_order_in_ascending_numbers(tmp_path: Path, kind: str, score: str) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    group = next(g for g in bank.table.groups if g.kind == kind)
    order = order_of(bank.model, group, {item.name: bank.gram(item.name) for item in group.consumers}, score)
    keep = group.size // 2
    assert bank.kept(group, Prune(keep, score), 0).tolist() == sorted(order[-keep:].tolist())


@pytest.mark.parametrize("kind", ["heads", "neurons", "hidden"])
def test_fisher_orders_come_from_one_pass_over_the_calibration_samples(tmp_path: Path, kind: str) -> None:
    task = task_of(bert())
    bank = bank_of(task, tmp_path)
    group = next(g for g in bank.table.groups if g.kind == kind)
    scores = structure_fisher(task.model, [group], task, task.calibration())[group.name]
    found = bank.kept(group, Prune(2, "fisher"), 0)
    assert found.tolist() == sorted(torch.argsort(scores, stable=True)[-2:].tolist())


def test_fisher_of_a_layer_is_shaped_like_its_matrix(tmp_path: Path) -> None:
    task = task_of(bert())
    expected = weight_fisher(task.model, [DOWN], task, task.calibration())[DOWN]
    assert expected.shape == (32, 64)
    torch.testing.assert_close(bank_of(task, tmp_path).fisher(DOWN), expected)


def test_random_structures_follow_the_seed_and_differ_between_groups(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    first, second = (g for g in bank.table.groups if g.kind == "neurons")
    prune = Prune(32, "random")
    found = [bank.kept(group, prune, seed).tolist() for group, seed in ((first, 0), (first, 1), (second, 0))]
    assert len({tuple(numbers) for numbers in found}) == 3
    assert bank_of(task_of(bert()), tmp_path / "other").kept(first, prune, 1).tolist() == found[1]


@pytest.mark.parametrize("score", [score for score in STRUCTURE_SCORES if score != "given"])
def test_levels_are_nested_for_every_score(tmp_path: Path, score: str) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    group = bank.table.group(NEURONS)
    levels = [set(bank.kept(group, Prune(keep, score), 0).tolist()) for keep in (8, 24, 64)]
    assert levels[0] < levels[1] < levels[2] == set(range(64))


def test_given_structures_are_the_first_ones(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    assert bank.kept(bank.table.group(NEURONS), Prune(3, "given"), 0).tolist() == [0, 1, 2]
    assert not list(tmp_path.iterdir())


def test_another_model_or_other_samples_share_no_moment(tmp_path: Path) -> None:
    model = bert()
    for task in (task_of(model), task_of(bert(seed=1)), task_of(model, lengths=(6, 8, 11, 3))):
        bank_of(task, tmp_path).gram("classifier")
    layers = {la.name for la in table_of(task_of(model)).layers if la.macs and la.kind != "embedding"}
    assert len(list(tmp_path.glob("moment-*"))) == 3 * len(layers)


def test_mean_output_leaves_padding_out(tmp_path: Path) -> None:
    task = task_of(bert())
    name = f"{BLOCK}.attention.output.dense"
    rows: list[Tensor] = []
    handle = task.model.get_submodule(name).register_forward_hook(lambda _m, _a, y: rows.append(y[0]))
    with torch.no_grad():
        for number in range(len(task.train)):  # one sample at a time has no padding
            task.model(**task.train.batch([number])[0])
    handle.remove()
    expected = torch.cat(rows).mean(dim=0)
    torch.testing.assert_close(bank_of(task, tmp_path).mean_output(name, 32), expected, rtol=1e-4, atol=1e-5)


def test_mean_output_of_another_width_is_an_error(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    with pytest.raises(ModelError, match=rf"^{DOWN}: its output must have 31 features, but has 32$"):
        bank.mean_output(DOWN, 31)


def test_whole_weights_come_back_by_their_hash(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    state = bank.model.state_dict()
    sha = bank.put_weights(state)
    found = bank_of(task_of(bert(seed=1)), tmp_path).weights(sha)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert bank.put_weights(dict(reversed(state.items()))) == sha
    assert len(sha) == 64


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_whole_weights_that_are_gone_or_damaged_are_an_error(tmp_path: Path, damage) -> None:
    task = task_of(bert())
    sha = bank_of(task, tmp_path).put_weights({"w": torch.zeros(3)})
    damage(tmp_path / f"weights-{sha}.safetensors")
    with pytest.raises(PlanError, match=rf"^init: the bank .* holds no whole weights '{sha}'"):
        bank_of(task, tmp_path).weights(sha)


def true_error(bank: Bank, group: Group, prune: Prune) -> float:
    """The relative error of the consumers' outputs on the calibration inputs themselves, layer by layer."""
    kept = bank.kept(group, prune, 0).tolist()
    lost = whole = 0.0
    for item in group.consumers:
        seen: list[Tensor] = []
        module = bank.model.get_submodule(item.name)
        handle = module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        count = 0
        with torch.no_grad():
            for _rows, inputs, _targets in bank.passes.examples.batches(32):
                bank.model(**inputs)
                if seen[-1].dim() == 3:
                    seen[-1] = seen[-1][inputs["attention_mask"] != 0]
        handle.remove()
        columns = torch.tensor(item.positions(kept))
        solved = bank.repaired(item.name, columns) if prune.repair else matrix_of(module)[:, columns]
        for value in seen:
            rows = value.reshape(-1, value.shape[-1])
            count += len(rows)
        rows = torch.cat([value.reshape(-1, value.shape[-1]) for value in seen])
        dense = rows @ matrix_of(module).T
        lost += float((dense - rows[:, columns] @ solved.T).pow(2).sum()) / count
        whole += float(dense.pow(2).sum()) / count
    return (lost / whole) ** 0.5


@pytest.mark.parametrize("repaired", [True, False])
@pytest.mark.parametrize("kind", ["heads", "neurons", "hidden"])
def test_errors_of_a_group_are_those_of_its_consumers_outputs(tmp_path: Path, kind: str, repaired: bool) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    group = next(g for g in bank.table.groups if g.kind == kind)
    options = [Prune(keep, repair=repaired) for keep in (1, group.size // 2, group.size)]
    found = bank.errors(group.name, options)
    assert [item.option for item in found] == options
    for item, option in zip(found, options, strict=True):
        assert item.error == pytest.approx(true_error(bank, group, option), rel=1e-3, abs=2e-3)
    assert found[0].error > found[1].error > found[2].error


def test_repair_lowers_the_error_and_both_save_the_same_weights(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    repaired, bare = bank.errors(NEURONS, [Prune(16), Prune(16, repair=False)])
    assert repaired.error < bare.error
    assert (repaired.weights, repaired.weights_dense) == (bare.weights, bare.weights_dense) == (1024, 4096)
    assert repaired.saved == 0.75


def test_errors_of_ranks_are_those_of_the_decomposition(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    weight, gram = weight_of(bank.model.get_submodule(DOWN)), bank.gram(DOWN)
    expected = rank_errors(weight, gram, Factorize(1))
    found = bank.errors(DOWN, [Factorize(rank) for rank in range(1, 33)])
    assert [item.error for item in found] == pytest.approx(expected[1:].tolist())
    assert found[3].weights == 4 * (32 + 64)


def test_errors_of_removed_parts(tmp_path: Path) -> None:
    task = task_of(bert())
    bank = bank_of(task, tmp_path)
    name = f"{BLOCK}/attention"
    kept, gone = bank.errors(name, [Prune(0), Prune(0, repair=False)])
    rows: list[Tensor] = []
    module = task.model.get_submodule(f"{BLOCK}.attention.output.dense")
    handle = module.register_forward_hook(lambda _m, _a, y: rows.append(y[0]))
    with torch.no_grad():
        for number in range(len(task.train)):
            task.model(**task.train.batch([number])[0])
    handle.remove()
    outputs = torch.cat(rows).double()
    variance = (outputs - outputs.mean(dim=0)).pow(2).sum() / outputs.pow(2).sum()
    assert kept.error == pytest.approx(float(variance.sqrt()), rel=1e-3)
    assert gone.error == 1.0
    assert (kept.weights, kept.saved) == (0, 1.0)
    block = bank.errors(BLOCK, [Prune(0)])[0]
    assert block.error > 0.0
    assert block.weights == 0


def test_the_menu_lists_every_option_of_the_plans_once(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    plans = [Plan({NEURONS: Prune(keep)}) for keep in (16, 32)]
    plans += [Plan({NEURONS: Prune(16)}, {DOWN: LayerPlan(factorize=Factorize(4))}), Plan({BLOCK: Prune(0)})]
    found = bank.menu(plans)
    assert [(item.name, item.option) for item in found] == [
        (NEURONS, Prune(16)),
        (NEURONS, Prune(32)),
        (DOWN, Factorize(4)),
        (BLOCK, Prune(0)),
    ]
    assert found[0] == bank.errors(NEURONS, [Prune(16)])[0]


def test_what_was_built_is_not_computed_again(tmp_path: Path, counted: Counter[str]) -> None:
    task = task_of(bert())
    table = table_of(task)
    plan = everything(table)
    Bank(tmp_path, task, table).build([Plan({name: prune}) for name, prune in plan.groups.items()], workers=1)
    before = dict(counted)
    shape(task.model, Plan(plan.groups), table, Bank(tmp_path, task, table))
    assert dict(counted) == before == {"order": 5, "repair": 13}


def test_the_limit_holds_and_changes_no_result(tmp_path: Path) -> None:
    task = task_of(bert())
    table = table_of(task)
    limit = 60_000
    small, free = Bank(tmp_path / "small", task, table, limit), Bank(tmp_path / "free", task, table)
    found = [shape(task.model, everything(table), table, bank) for bank in (small, free)]
    assert same(*found)
    assert small.store.size_bytes() <= limit < free.store.size_bytes()


@pytest.mark.parametrize("kind", ["order", "repair", "moment"])
def test_a_torn_file_is_computed_again(tmp_path: Path, kind: str) -> None:
    task = task_of(bert())
    table = table_of(task)
    expected = shape(task.model, everything(table), table, Bank(tmp_path, task, table))
    for path in tmp_path.glob(f"{kind}-*"):
        path.write_bytes(path.read_bytes()[:-3])
    assert same(shape(task.model, everything(table), table, Bank(tmp_path, task, table)), expected)


def test_a_result_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    task = task_of(bert())
    table = table_of(task)
    Bank(tmp_path / "one", task, table).gram(DOWN)
    (tmp_path / "two").mkdir()
    for path in (tmp_path / "one").glob("moment-*"):
        (tmp_path / "two" / path.name).write_bytes(path.read_bytes())
    found = []
    for count, name in ((1, "one"), (2, "two")):
        torch.set_num_threads(count)
        try:
            found.append(shape(task.model, everything(table), table, Bank(tmp_path / name, task, table)))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(1)
    assert same(*found)


def test_weights_that_are_not_numbers_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    task = task_of(bert())
    table = table_of(task)
    with torch.no_grad():
        task.model.get_submodule(DOWN).weight[0, 0] = torch.nan
    bank = Bank(tmp_path, task, table)
    for ask in (lambda: bank.kept(table.group(NEURONS), Prune(3, "magnitude"), 0), lambda: bank.gram(DOWN)):
        with pytest.raises(ModelError, match=rf"^layer {DOWN}: its weight holds NaN or infinity$"):
            ask()


def test_activations_that_are_not_numbers_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    task = task_of(bert())
    table = table_of(task)
    with torch.no_grad():
        task.model.get_submodule(f"{BLOCK}.attention.output.dense").bias[0] = torch.inf
    with pytest.raises(DataError, match=rf"^layer {BLOCK}\.intermediate\.dense: its calibration inputs hold NaN"):
        Bank(tmp_path, task, table).gram(DOWN)


def test_a_grouped_convolution_has_no_second_moment(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^layer second: has no second moment of inputs: it is a grouped convolution"):
        bank_of(task_of(cnn()), tmp_path).gram("second")


def test_a_name_that_the_model_does_not_have_is_an_error(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    with pytest.raises(ModelError, match=r"no group 'neurons'"):
        bank.errors("neurons", [Prune(1)])
    with pytest.raises(ModelError, match=r"no layer 'dense'"):
        bank.errors("dense", [Factorize(1)])


def test_nothing_is_kept_in_memory_of_weights_that_candidates_factorize(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    before = len(bank._sources)
    for seed in range(5):
        weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
        bank.factors(weight, torch.eye(8), Factorize(2))
    assert len(bank._sources) == before


def test_store_keys_name_their_kind(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    bank.repaired(DOWN, torch.arange(5))
    kinds = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert kinds == {"moment", "repair"}
    assert Store(tmp_path).size_bytes() == sum(path.stat().st_size for path in tmp_path.iterdir())
