"""Oracles: terms computed by hand from transformers' hidden states, zero for equal models, shapes of removed parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.shape import shape
from autocompress.distill.hidden import HiddenTerms, hidden_terms, kept_dimensions
from autocompress.distill.states import watching
from autocompress.distill.terms import cosine_distance, hidden_error, normalised_error
from autocompress.layers import LayerTable
from autocompress.plan import Plan, Prune, Terms
from autocompress.tasks.task import Task
from tests.tiny import Chooser, any_task, bert, stirred, table_of

ALL = Terms(hidden=1.0, cosine=1.0, relations=1.0, normalised=1.0)
FAMILIES = ("bert", "distilbert", "vit", "gpt2", "llama")


def shaped(task: Task, plan: Plan, table: LayerTable) -> nn.Module:
    return shape(task.source, plan, table, FirstOnes(task.source))


def hidden_group(table: LayerTable) -> str:
    return next(group.name for group in table.groups if group.kind == "hidden")


def terms_of(module: HiddenTerms, student: nn.Module, task: Task, rows: list[int]) -> dict[str, Tensor]:
    inputs = task.train.batch(rows)[0]
    listening = module.listening
    with watching(student, listening.student) as own, watching(task.model, listening.teacher) as its:
        student(**inputs)
        with torch.no_grad():
            task.model(**inputs)
        return module(own, its, inputs)


def states_of(model: nn.Module, task: Task, rows: list[int]) -> list[Tensor]:
    with torch.no_grad():
        return list(model(**task.train.batch(rows)[0], output_hidden_states=True).hidden_states[1:])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hidden_map", ["static", "dynamic"])
def test_a_copy_of_the_teacher_has_nothing_to_learn(family: str, hidden_map: str) -> None:
    task = any_task(family)
    table = table_of(task)
    student = shaped(task, Plan(), table)
    found = terms_of(hidden_terms(student, task, table, replace(ALL, hidden_map=hidden_map)), student, task, [0, 1, 2])
    assert list(found) == ["hidden", "normalised", "cosine", "relations"]
    assert all(float(term.detach()) == pytest.approx(0, abs=1e-5) for term in found.values())


def test_terms_are_those_of_the_static_map_without_padding() -> None:
    """By hand from transformers' hidden states; the student lacks block 1 of 3, so blocks 0 and 2 learn."""
    task = any_task("bert", 3)
    table = table_of(task)
    student = stirred(shaped(task, Plan({table.blocks[1]: Prune(0)}), table), 4)
    rows = [0, 2]
    mask = task.train.batch(rows)[0]["attention_mask"].bool()
    found = terms_of(hidden_terms(student, task, table, ALL), student, task, rows)
    its, mine = states_of(task.model, task, rows), states_of(student, task, rows)
    pairs = [(mine[0], its[0]), (mine[-1], its[2])]
    for name, term in (("hidden", hidden_error), ("normalised", normalised_error)):
        expected = sum(float(term(s, t, mask)) for s, t in pairs) / 2
        assert float(found[name].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(found["cosine"].detach()) == pytest.approx(float(cosine_distance(mine[-1], its[2], mask)), rel=1e-4)


def test_the_dynamic_map_chooses_by_error_among_blocks_that_are_left() -> None:
    """Of 4 blocks, 1 and 3 are taught; block 0 and 3 of the student are left, so the least sum is over three maps."""
    task = any_task("bert", 4)
    table = table_of(task)
    student = shaped(task, Plan({name: Prune(0) for name in table.blocks[1:3]}), table)
    module = hidden_terms(student, task, table, Terms(hidden=1.0, hidden_map="dynamic"))
    rows = [0, 1, 2]
    mask = task.train.batch(rows)[0]["attention_mask"].bool()
    its, mine = states_of(task.model, task, rows), states_of(student, task, rows)
    own = [mine[0], mine[-1]]
    sums = [
        float(hidden_error(own[a], its[1], mask)) + float(hidden_error(own[b], its[3], mask))
        for a, b in ((0, 0), (0, 1), (1, 1))
    ]
    found = terms_of(module, student, task, rows)["hidden"]
    assert float(found.detach()) == pytest.approx(min(sums) / 2, rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_padding_changes_no_term(family: str) -> None:
    """Sample 0 has 5 tokens: alone it is not padded, beside one of 12 it is, and counting it twice is no change."""
    task = any_task(family)
    table = table_of(task)
    student = stirred(shaped(task, Plan(), table), 4)
    module = hidden_terms(student, task, table, ALL)
    alone = terms_of(module, student, task, [0])
    inputs, listening = task.train.batch([0, 2])[0], module.listening
    with watching(student, listening.student) as own, watching(task.model, listening.teacher) as its:
        student(**inputs)
        task.model(**inputs)
        inputs["attention_mask"][1] = 0  # the other sample is no part of it
        beside = module(own, its, inputs)
    for name, term in alone.items():
        torch.testing.assert_close(beside[name], term, rtol=2e-3, atol=1e-5)


def test_terms_without_weight_are_not_there() -> None:
    task = any_task("bert")
    table = table_of(task)
    student = shaped(task, Plan(), table)
    assert list(terms_of(hidden_terms(student, task, table, Terms(cosine=0.5)), student, task, [0])) == ["cosine"]


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_hidden_dimensions_are_recognised(family: str) -> None:
    task = any_task(family)
    table, name = table_of(task), None
    name = hidden_group(table)
    plan = Plan({name: Prune(table.group(name).size // 2, repair=False)}, seed=3)
    choices = Chooser(task)
    student = shape(task.source, plan, table, choices)
    expected = choices.kept(table.group(name), plan.groups[name], plan.seed).tolist()
    assert kept_dimensions(student, task.model, table) == expected


def test_the_map_starts_as_the_identity_of_what_is_kept() -> None:
    task = any_task("bert")
    table = table_of(task)
    name = hidden_group(table)
    whole = hidden_terms(shaped(task, Plan(), table), task, table, ALL)
    assert torch.equal(whole.weight, torch.eye(32))
    plan, choices = Plan({name: Prune(20, repair=False)}, seed=3), Chooser(task)
    kept = choices.kept(table.group(name), plan.groups[name], plan.seed)
    student = shape(task.source, plan, table, choices)
    module = hidden_terms(student, task, table, ALL)
    assert torch.equal(module.weight, torch.eye(32)[:, kept])
    found = terms_of(module, student, task, [0, 1])
    assert all(torch.isfinite(term) and float(term.detach()) > 0 for term in found.values())


def test_a_smaller_network_of_its_own_learns_evenly_through_the_map() -> None:
    """By hand: one block of width 16 learns from the last of two of width 32, its dimensions from the first 16."""
    task = replace(any_task("bert"), student=bert(hidden=16, layers=1, heads=2, neurons=24, seed=8))
    table = table_of(task)
    student = shaped(task, Plan(), table)
    module = hidden_terms(student, task, table, ALL)
    assert torch.equal(module.weight, torch.eye(32, 16))
    rows = [0, 2]
    mask = task.train.batch(rows)[0]["attention_mask"].bool()
    its, mine = states_of(task.model, task, rows)[-1], states_of(student, task, rows)[-1]
    mapped = torch.cat([mine, torch.zeros_like(mine)], dim=-1)
    found = terms_of(module, student, task, rows)
    assert float(found["hidden"].detach()) == pytest.approx(float(hidden_error(mapped, its, mask)), rel=1e-4)
    assert float(found["cosine"].detach()) == pytest.approx(float(cosine_distance(mapped, its, mask)), rel=1e-4)
    assert float(found["normalised"].detach()) == pytest.approx(float(normalised_error(mapped, its, mask)), rel=1e-4)


@pytest.mark.parametrize("hidden_map", ["static", "dynamic"])
def test_gradients_reach_the_student_and_the_map_and_not_the_teacher(hidden_map: str) -> None:
    task = any_task("bert")
    table = table_of(task)
    student = stirred(shaped(task, Plan(), table), 4)
    module = hidden_terms(student, task, table, replace(ALL, hidden_map=hidden_map))
    sum(terms_of(module, student, task, [0, 1]).values()).backward()
    assert module.weight.grad.abs().sum() > 0
    assert student.bert.encoder.layer[0].intermediate.dense.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in task.model.parameters())
