"""Oracles: the functions that the bank stores the results of, and the files that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autocompress.compress import bank as bank_module
from autocompress.compress.calibrate import gram_matrices
from autocompress.compress.prune import magnitude_order, obs_order
from autocompress.plan import Prune
from tests.tiny import bank_of, bert, task_of

NEURONS = "bert.encoder.layer.0.intermediate.dense/neurons"


def test_gram_is_what_calibration_gives(tmp_path: Path) -> None:
    task = task_of(bert())
    name = "bert.encoder.layer.1.output.dense"
    expected = gram_matrices(task.model, [name], task.calibration())[name]
    torch.testing.assert_close(bank_of(task, tmp_path).gram(name), expected.float())


@pytest.mark.parametrize("score", ["obs", "magnitude"])
def test_kept_is_the_end_of_the_order_in_ascending_numbers(tmp_path: Path, score: str) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    group = bank.table.group(NEURONS)
    weight = bank.model.get_parameter("bert.encoder.layer.0.output.dense.weight").detach()
    order = magnitude_order(weight, 1) if score == "magnitude" else obs_order(weight, bank.gram(group.consumers[0]), 1)
    kept = bank.kept(group, Prune(20, score))
    assert kept.tolist() == sorted(order[-20:].tolist())


def test_levels_are_nested(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path)
    group = bank.table.group(NEURONS)
    levels = [set(bank.kept(group, Prune(keep)).tolist()) for keep in (8, 24, 64)]
    assert levels[0] < levels[1] < levels[2] == set(range(64))


def test_a_second_bank_reads_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(bert())
    first = bank_of(task, tmp_path)
    group = first.table.group(NEURONS)
    expected = first.kept(group, Prune(20))
    monkeypatch.setattr(bank_module, "gram_matrices", None)
    monkeypatch.setattr(bank_module, "obs_order", None)
    assert torch.equal(bank_of(task, tmp_path).kept(group, Prune(20)), expected)


def test_another_model_shares_no_file(tmp_path: Path) -> None:
    for seed in (0, 1):
        bank_of(task_of(bert(seed=seed)), tmp_path).gram("classifier")
    assert len(list(tmp_path.glob("moments-*"))) == 2


def test_a_copied_group_name_is_one_file_name(tmp_path: Path) -> None:
    bank = bank_of(task_of(bert()), tmp_path / "bank")
    bank.kept(bank.table.group(NEURONS), Prune(3, "magnitude"))
    assert [path.parent for path in (tmp_path / "bank").rglob("order-*")] == [tmp_path / "bank"]
