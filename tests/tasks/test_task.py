"""Oracles: hand-made batches, set arithmetic, and fingerprints that must or must not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.errors import DataError
from autocompress.tasks.task import ACCURACY, MIN_DIVIDED, Examples, Task, divide, logits_of
from tests.tiny import bert, mlp, task_of, tensors, texts


def ragged(*rows: list[int]) -> Examples:
    columns = {"ids": [torch.tensor(row) for row in rows]}
    return Examples(columns, torch.arange(len(rows)), {"ids": -7})


def test_a_batch_is_padded_to_its_longest_row() -> None:
    inputs, targets = ragged([1], [2, 3, 4], [5, 6]).batch([0, 2])
    assert inputs["ids"].tolist() == [[1, -7], [5, 6]]
    assert targets.tolist() == [0, 2]


def test_batches_visit_every_row_once_shortest_first() -> None:
    examples = texts(11, 0)
    seen, lengths = [], []
    for rows, inputs, targets in examples.batches(4):
        assert len(rows) == len(targets) == len(inputs["input_ids"]) <= 4
        assert torch.equal(targets, examples.targets[rows.tolist()])
        seen += rows.tolist()
        lengths.append(inputs["input_ids"].shape[1])
    assert sorted(seen) == list(range(11))
    assert lengths == sorted(lengths)


def test_a_subset_is_seeded_and_without_replacement() -> None:
    examples = tensors("x", (2,), 50, 0)
    first, again, other = (examples.subset(20, seed) for seed in (0, 0, 1))
    assert torch.equal(first.inputs["x"], again.inputs["x"])
    assert not torch.equal(first.inputs["x"], other.inputs["x"])
    assert len(torch.unique(first.inputs["x"][:, 0])) == 20
    assert examples.subset(50) is examples


def test_take_keeps_inputs_and_targets_together() -> None:
    taken = ragged([1], [2, 3], [4]).take([2, 1])
    assert [row.tolist() for row in taken.inputs["ids"]] == [[4], [2, 3]]
    assert taken.targets.tolist() == [2, 1]


def test_a_split_without_samples_is_refused() -> None:
    with pytest.raises(DataError, match="a split has no samples"):
        Examples({"x": torch.zeros(0, 2)}, torch.zeros(0))


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="input 'x' has 3 samples, but there are 2 targets"):
        Examples({"x": torch.zeros(3, 2)}, torch.zeros(2))


def test_splits_with_other_inputs_are_refused() -> None:
    with pytest.raises(DataError, match=r"validation has inputs \['y'\], but train has \['x'\]"):
        task_of(mlp(), validation=tensors("y", (16,), 4, 0))


def test_the_model_of_a_task_does_not_drop_out() -> None:
    assert not task_of(bert().train()).model.training


def test_calibration_is_training_data() -> None:
    task = task_of(mlp())
    known = {tuple(row.tolist()) for row in task.train.inputs["x"]}
    chosen = {tuple(row.tolist()) for row in task.calibration(10).inputs["x"]}
    assert len(chosen) == 10
    assert chosen < known


@pytest.mark.parametrize("batch", [1, 24, 50])
def test_a_query_has_the_batch_that_is_asked_for(batch: int) -> None:
    assert task_of(mlp()).workload_inputs(batch, None)["x"].shape == (batch, 16)


def test_a_query_is_as_long_as_the_workload_says() -> None:
    """Of inputs whose length is free; and all of it is real."""
    task = task_of(bert(), lengths=(3, 9, 5))
    inputs = task.workload_inputs(2, 7)
    assert {name: value.shape for name, value in inputs.items()} == {"input_ids": (2, 7), "attention_mask": (2, 7)}
    assert inputs["attention_mask"].all()
    assert inputs["input_ids"][0].tolist() == torch.cat(list(task.train.inputs["input_ids"][:2]))[:7].tolist()
    assert task.workload_inputs(1, 40)["input_ids"].shape == (1, 9)  # no sample is longer
    assert task_of(mlp()).workload_inputs(2, 40)["x"].shape == (2, 16)
    lists = {name: [row.tolist() for row in column] for name, column in task.train.inputs.items()}
    plain = replace(task, train=Examples(lists, task.train.targets, task.train.padding))
    assert plain.workload_inputs(2, 7)["input_ids"].tolist() == inputs["input_ids"].tolist()


def test_traced_inputs_differ_in_length() -> None:
    mask = task_of(bert()).trace_inputs()["attention_mask"].sum(dim=1)
    assert mask[0] < mask[1]


def test_identity_is_the_same_for_the_same() -> None:
    assert task_of(mlp()).identity == task_of(mlp()).identity
    assert task_of(bert()).identity == task_of(bert()).identity


def changed_weight(task: Task) -> Task:
    model = mlp()
    model.second.bias.data[1] += 1e-6
    return replace(task, model=model)


def changed_input(task: Task) -> Task:
    values = task.test.inputs["x"].clone()
    values[3, 3] += 1
    return replace(task, test=Examples({"x": values}, task.test.targets))


def changed_target(task: Task) -> Task:
    targets = task.train.targets.clone()
    targets[0] = (targets[0] + 1) % 3
    return replace(task, train=Examples(task.train.inputs, targets))


def changed_length(task: Task) -> Task:
    return replace(task, validation=task.validation.take(range(11)))


@pytest.mark.parametrize(
    "change", [changed_weight, changed_input, changed_target, changed_length], ids=lambda f: f.__name__
)
def test_identity_changes_with(change: object) -> None:
    task = task_of(mlp())
    assert change(task).identity != task.identity


def test_a_model_with_batchnorm_has_an_identity() -> None:
    task = task_of(mlp())
    replace(task, model=nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))).identity  # noqa: B018


def test_accuracy_by_hand() -> None:
    logits, targets = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]]), np.array([1, 1, 1])
    assert ACCURACY.score(logits, targets) == pytest.approx(2 / 3)
    assert ACCURACY.per_sample(logits, targets).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "output",
    [torch.ones(2), (torch.ones(2), None), [torch.ones(2)], SimpleNamespace(logits=torch.ones(2))],
    ids=["tensor", "tuple", "list", "object"],
)
def test_logits_are_found_in(output: object) -> None:
    assert torch.equal(logits_of(output), torch.ones(2))


@pytest.mark.parametrize("output", ["text", {"scores": torch.ones(2)}, ()], ids=["text", "dict", "empty"])
def test_an_output_without_logits_is_refused(output: object) -> None:
    with pytest.raises(DataError, match=f"must return a tensor or .* but returned {type(output).__name__}"):
        logits_of(output)


def classes_of(count: int, shares: tuple[float, ...] = (0.7, 0.25, 0.05)) -> torch.Tensor:
    """Class numbers in clumps: all of one class, then all of the next."""
    return torch.arange(len(shares)).repeat_interleave(torch.tensor([round(count * share) for share in shares]))


@pytest.mark.parametrize(
    ("targets", "ordered"),
    [
        pytest.param(classes_of(400), False, id="classes"),
        pytest.param(torch.linspace(0, 1, 101), False, id="numbers"),
        pytest.param(torch.zeros(250, 7, dtype=torch.int64), False, id="many_per_sample"),
        pytest.param(torch.zeros(333, 7, dtype=torch.int64), True, id="text"),
    ],
)
def test_the_parts_are_disjoint_halves_of_validation(targets: torch.Tensor, ordered: bool) -> None:
    parts = divide(targets, ordered)
    assert parts.divided
    assert sorted([*parts.select, *parts.confirm]) == list(range(len(targets)))
    assert 0 <= len(parts.select) - len(parts.confirm) <= 1
    assert list(parts.select) == sorted(parts.select)


@pytest.mark.parametrize("seed", range(5))
def test_each_part_has_half_of_every_class(seed: int) -> None:
    targets = classes_of(407)
    parts = divide(targets, seed=seed)
    counts = [torch.bincount(targets[rows], minlength=3) for rows in (parts.select, parts.confirm)]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_blocks_of_one_text_are_divided_at_the_middle() -> None:
    parts = divide(torch.zeros(101, 7, dtype=torch.int64), ordered=True)
    assert (parts.select[-1], parts.confirm[0]) == (50, 51)


def test_the_draw_is_seeded_and_the_same_in_every_process() -> None:
    targets = classes_of(400)
    first, again, other = (divide(targets, seed=seed).confirm.tolist() for seed in (0, 0, 1))
    assert first == again != other
    code = (
        "import torch; from autocompress.tasks.task import divide;"
        f"print(divide(torch.tensor({targets.tolist()})).confirm.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert json.loads(done.stdout) == first


def test_a_small_validation_split_is_both_parts() -> None:
    whole = list(range(MIN_DIVIDED - 1))
    parts = divide(torch.zeros(MIN_DIVIDED - 1, dtype=torch.int64))
    assert parts.select.tolist() == parts.confirm.tolist() == whole
    assert not parts.divided
    assert divide(torch.zeros(MIN_DIVIDED, dtype=torch.int64)).divided


def test_a_selection_never_holds_what_confirms() -> None:
    task = task_of(mlp(), validation=tensors("x", (16,), 200, 0))
    held = {tuple(row) for row in task.validation.inputs["x"][task.parts.confirm].tolist()}
    few, all_of_it = task.selection(30), task.selection(1000)
    assert (len(few), len(all_of_it)) == (30, 100)
    assert not held & {tuple(row) for row in all_of_it.inputs["x"].tolist()}
