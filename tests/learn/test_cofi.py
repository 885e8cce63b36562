"""CoFi on tiny models: the target is met, what is closed is gone, and the result is a plan that restores."""

from __future__ import annotations

import math

import pytest
import torch

from autocompress.compressing.shape import restore
from autocompress.distill import TeacherCache
from autocompress.errors import ModelError
from autocompress.learn import learn
from autocompress.learn.cofi import HIDDEN_STEP, as_float, closed
from autocompress.learn.gates import Expected, Gates
from autocompress.learn.latency import LatencyFit
from autocompress.plan import Cofi, LayerPlan, Plan, Quantize, check_plan, effective_layers
from tests.tiny import any_task, mlp, run, table_of, task_of

SHORT = {"steps": 6, "warmup_steps": 2, "finetune_steps": 2}


def learned(family: str, recipe: Cofi, **rest):
    task = any_task(family)
    table = table_of(task)
    kept = {}

    def store(state) -> str:
        kept.update(state)
        return "0" * 64

    result = learn(task, Plan(learn=recipe, **rest), table, store, predict=LatencyFit(0.1, (0.1, 0.3, 0.1, 0.4), 0.0))
    return task, table, kept, result


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2", "llama"])
@pytest.mark.parametrize("sparsity", [0.4, 0.8])
def test_the_plan_meets_the_target_and_restores(family: str, sparsity: float) -> None:
    task, table, kept, result = learned(family, Cofi(sparsity=sparsity, **SHORT))
    plan = result.plan
    assert plan.learn is None
    assert plan.init == "0" * 64
    check_plan(plan, table)
    inside = [e for e in effective_layers(plan, table) if e.layer.block and e.layer.kind == "linear"]
    gone = 1 - sum(e.weights for e in inside) / sum(math.prod(e.layer.weight_shape) for e in inside)
    assert gone >= sparsity - 1e-6
    small = restore(task.model, plan, table, kept)
    inputs, _targets = task.validation.batch(range(3))
    assert torch.isfinite(run(small, inputs)).all()
    assert result.history[-1]["sparsity"] == pytest.approx(gone, abs=1e-5)


def test_a_latency_target_is_met_by_the_fit() -> None:
    _task, _table, _kept, result = learned("bert", Cofi(latency_ratio=0.5, **SHORT))
    assert 1 - result.history[-1]["gone"] <= 0.5 + 1e-6


def test_bits_recovery_and_seed_of_the_plan_stay() -> None:
    name = "bert.encoder.layer.0.output.dense"
    bits = {name: LayerPlan(quantize=Quantize("int8"))}
    *_rest, result = learned("bert", Cofi(sparsity=0.3, **SHORT), layers=bits, seed=4)
    assert result.plan.layers == bits
    assert result.plan.seed == 4


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = (learned("vit", Cofi(sparsity=0.5, **SHORT)) for _ in range(2))
    assert first[3].plan == second[3].plan
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


def test_weights_of_the_task_stay_as_they_are() -> None:
    task = any_task("vit")
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    learn(task, Plan(learn=Cofi(sparsity=0.5, **SHORT)), table_of(task), lambda _state: "0" * 64)
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())


def test_the_fewest_gates_close_and_the_stream_keeps_whole_steps() -> None:
    table = table_of(any_task("bert"))
    gates, expected = Gates(table, True), Expected(table)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in gates.log_alpha:
            value.copy_(torch.randn(value.shape, generator=generator))
    groups, kept = closed(gates, table, expected.sparsity, 0.5)
    assert float(expected.sparsity(as_float(kept, gates))) >= 0.5
    hidden = next(g for g in table.groups if g.kind == "hidden")
    assert len(kept[hidden.name]) % HIDDEN_STEP == 0
    assert all(prune.score == "given" and not prune.repair for prune in groups.values())


def test_models_without_known_structure_are_refused() -> None:
    task = task_of(mlp())
    with pytest.raises(ModelError, match="cofi needs heads or neurons, and Mlp has none"):
        learn(task, Plan(learn=Cofi(sparsity=0.5)), table_of(task), lambda _state: "")


def test_a_latency_target_needs_a_fit() -> None:
    task = any_task("bert")
    with pytest.raises(ModelError, match="latency_ratio needs a measured latency fit"):
        learn(
            task,
            Plan(learn=Cofi(latency_ratio=0.5)),
            table_of(task),
            lambda _state: "",
            teacher=TeacherCache(None, task),
        )


def test_a_target_that_even_closed_gates_miss_is_refused_before_training() -> None:
    task = any_task("bert")
    fit = LatencyFit(0.5, (0.1, 0.1, 0.1, 0.2), 0.0)
    plan = Plan(learn=Cofi(latency_ratio=0.4, steps=10**6))
    message = r"cannot reach latency_ratio 0.4: with every gate closed it is predicted to be latency_ratio 0.5"
    with pytest.raises(ModelError, match=message):
        learn(task, plan, table_of(task), lambda _state: "", predict=fit)
