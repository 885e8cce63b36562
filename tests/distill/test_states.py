"""Oracles: transformers' own hidden states, projections applied by hand, and models left as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.shape import shape
from autocompress.distill.states import watching, what_to_watch
from autocompress.errors import ModelError
from autocompress.layers import LayerTable
from autocompress.plan import Plan, Prune
from autocompress.tasks.task import Task
from autocompress.weights import linearized
from tests.tiny import any_task, build_any, cnn, mlp, table_of, task_of

FAMILIES = ("bert", "roberta", "distilbert", "vit", "gpt2", "llama")


def shaped(task: Task, plan: Plan, table: LayerTable) -> nn.Module:
    return shape(task.source, plan, table, FirstOnes(task.source))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_the_outputs_of_the_blocks(family: str) -> None:
    """transformers tells them too; some families apply the last norm to the last of theirs, so that is left out."""
    task = any_task(family, 3)
    watched = what_to_watch(task.model, table_of(task), False, "teacher")
    inputs = task.train.batch([0, 1])[0]
    with torch.no_grad(), watching(task.model, watched) as states:
        expected = task.model(**inputs, output_hidden_states=True).hidden_states
    assert list(states.hidden) == list(watched.blocks)
    found = list(states.hidden.values())
    for mine, its in zip(found[:2], expected[1:3], strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("family", FAMILIES)
def test_listening_changes_nothing_and_ends(family: str) -> None:
    task = any_task(family)
    inputs = task.train.batch([0, 1])[0]
    hooks = sum(len(m._forward_hooks) for m in task.model.modules())
    with torch.no_grad():
        before = task.model(**inputs).logits
        with watching(task.model, what_to_watch(task.model, table_of(task), True, "teacher")):
            during = task.model(**inputs).logits
    assert torch.equal(before, during)
    assert sum(len(m._forward_hooks) for m in task.model.modules()) == hooks


def test_hooks_are_gone_after_an_error() -> None:
    task = any_task("bert")
    with (
        pytest.raises(RuntimeError, match="stop"),
        watching(task.model, what_to_watch(task.model, table_of(task), True, "teacher")),
    ):
        raise RuntimeError("stop")
    assert not any(m._forward_hooks for m in task.model.modules())


def test_removed_blocks_are_skipped() -> None:
    task = any_task("bert", 4)
    table = table_of(task)
    student = shaped(task, Plan({name: Prune(0) for name in (table.blocks[1], table.blocks[3])}), table)
    watched = what_to_watch(student, table, True, "student")
    assert watched.blocks == (table.blocks[0], table.blocks[2])
    assert all(item.name.startswith(table.blocks[2]) for item in watched.projections)


def test_a_removed_attention_leaves_the_one_before_it() -> None:
    task = any_task("bert", 2)
    table = table_of(task)
    student = shaped(task, Plan({f"{table.blocks[1]}/attention": Prune(0)}), table)
    watched = what_to_watch(student, table, True, "student")
    assert watched.blocks == table.blocks
    assert all(item.name.startswith(table.blocks[0]) for item in watched.projections)


@pytest.mark.parametrize(("family", "causal"), [("bert", False), ("vit", False), ("gpt2", True), ("llama", True)])
def test_whether_attention_is_causal_is_read_off_the_model(family: str, causal: bool) -> None:
    model = build_any(family)
    assert what_to_watch(model, table_of(any_task(family)), True, "teacher").causal is causal


def test_queries_keys_and_values_are_the_projections_outputs() -> None:
    task = any_task("bert")
    watched = what_to_watch(task.model, table_of(task), True, "teacher")
    inputs = task.train.batch([0, 1])[0]
    with torch.no_grad(), watching(task.model, watched) as states:
        task.model(**inputs)
        entering = states.hidden[watched.blocks[0]]
        attention = task.model.bert.encoder.layer[1].attention.self
        expected = [projection(entering) for projection in (attention.query, attention.key, attention.value)]
    for found, its in zip(states.projections(watched.projections), expected, strict=True):
        torch.testing.assert_close(found, its)


@pytest.mark.parametrize("keep", [4, 3, 1])
def test_a_fused_projection_is_cut_where_its_parts_lie(keep: int) -> None:
    """GPT-2 keeps queries, keys and values in one layer; fewer heads leave three shorter parts."""
    task = any_task("gpt2")
    table = table_of(task)
    heads = [group for group in table.groups if group.kind == "heads"][-1]
    student = shaped(task, Plan({heads.name: Prune(keep, repair=False)}), table)
    watched = what_to_watch(student, table, True, "student")
    with torch.no_grad(), watching(student, watched) as states:
        student(**task.train.batch([0])[0])
    found = states.projections(watched.projections)
    whole = states.raw[heads.producers[0].name]
    assert [part.shape[-1] for part in found] == [8 * keep] * 3
    torch.testing.assert_close(torch.cat(found, dim=-1), whole)


def test_grouped_query_attention_has_narrower_keys_and_values() -> None:
    task = any_task("llama")
    watched = what_to_watch(task.model, table_of(task), True, "teacher")
    with torch.no_grad(), watching(task.model, watched) as states:
        task.model(**task.train.batch([0])[0])
    assert [part.shape[-1] for part in states.projections(watched.projections)] == [48, 24, 24]


def test_transformers_conv1d_is_heard_as_a_linear_is() -> None:
    task = any_task("gpt2")
    watched = what_to_watch(task.model, table_of(task), True, "teacher")
    inputs, heard = task.train.batch([0, 1])[0], []
    for model in (build_any("gpt2"), linearized(build_any("gpt2"))):
        with torch.no_grad(), watching(model, watched) as states:
            model(**inputs)
        heard.append(states.projections(watched.projections))
    torch.testing.assert_close(heard[0], heard[1])


@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_model_without_blocks_needs_an_adapter(make: object) -> None:
    task = task_of(make())
    with pytest.raises(ModelError, match=r"need to know the blocks of the student, (Mlp|Cnn), and no adapter"):
        what_to_watch(task.model, table_of(task), False, "student")


def test_a_student_without_any_block_or_head_is_told() -> None:
    task = any_task("bert")
    table = table_of(task)
    empty = shaped(task, Plan({name: Prune(0) for name in table.blocks}), table)
    with pytest.raises(ModelError, match="all 2 blocks of the student are removed"):
        what_to_watch(empty, table, False, "student")
    deaf = shaped(task, Plan({f"{name}/attention": Prune(0) for name in table.blocks}), table)
    with pytest.raises(ModelError, match=r"relations needs queries, keys and values, but the student, Bert\w+, has no"):
        what_to_watch(deaf, table, True, "student")
