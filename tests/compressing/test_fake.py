"""Oracles: the simulated integers, gradients by hand, and the model as it was before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.codes import Steps
from autocompress.compressing.fake import _clipped, fake_quantization, straight_through
from autocompress.compressing.quantize import quantize, simulate
from autocompress.errors import PlanError
from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.tasks.task import Task, logits_of
from tests.compressing.test_quantize import NormCnn
from tests.tiny import bert, cnn, mlp, quantized, run, table_of, task_of, tensors, vit


def norm_task() -> Task:
    torch.manual_seed(0)
    pixels = tensors("pixel_values", (1, 8, 8), 24, 0)
    return Task("norms", NormCnn().eval(), pixels, pixels, pixels)


TASKS: dict[str, Callable[[], Task]] = {
    "mlp": lambda: task_of(mlp()),
    "cnn": lambda: task_of(cnn()),
    "norms": norm_task,
    "bert": lambda: task_of(bert()),
    "vit": lambda: task_of(vit()),
}


def everywhere(task: Task, precision: str, **settings: object) -> Plan:
    """The precision on every layer of a kind that has it."""
    kinds = {"int8": ("linear", "conv"), "fp16": ("linear", "conv"), "int8-weights": ("embedding",)}.get(precision)
    names = [la.name for la in table_of(task).layers if la.kind in (kinds or ("linear",))]
    return quantized(precision, *names, **settings)


CASES = [
    ("int8", {}),
    ("int8", {"weight_bits": 3, "activation_bits": 4, "calibrator": "mse"}),
    ("int8", {"symmetric": False, "granularity": "tensor", "weight_bits": 4}),
    ("int8", {"smooth": 0.5}),
    ("fp8", {}),
    ("int8-dynamic", {"weight_bits": 5, "smooth": 0.7}),
    ("int4-weights", {"weight_bits": 3, "symmetric": False}),
    ("fp16", {}),
]


@pytest.mark.parametrize(("precision", "settings"), CASES, ids=str)
@pytest.mark.parametrize("family", TASKS)
def test_the_forward_is_what_the_integers_compute(family: str, precision: str, settings: dict[str, object]) -> None:
    task = TASKS[family]()
    model, table = task.model, table_of(task)
    plan = everywhere(task, precision, **settings)
    inputs = task.test.batch(range(10))[0]
    made = quantize(model, plan, table, task.calibration())
    expected, dense = run(simulate(made.model, made.codes), inputs), run(model, inputs)
    with fake_quantization(model, plan, table, task.calibration()), torch.inference_mode():
        found = logits_of(model(**inputs))
    assert float((expected - dense).norm()) > 0
    # a value on the border of two steps may fall to either side
    assert float((found - expected).norm() / expected.norm()) < (1e-5 if family in ("mlp", "cnn") else 0.03)
    assert torch.equal(run(model, inputs), dense)


@pytest.mark.parametrize("family", TASKS)
def test_afterwards_the_model_is_what_it_was(family: str) -> None:
    task = TASKS[family]()
    model = task.model.train()
    parameters = dict(model.named_parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    with fake_quantization(model, everywhere(task, "int8", smooth=0.5), table_of(task), task.calibration()):
        assert dict(model.named_parameters()) == parameters
        assert any(module._forward_hooks for module in model.modules())
    assert model.training
    assert dict(model.named_parameters()) == parameters
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_fault_inside_leaves_nothing_behind() -> None:
    task = task_of(mlp())
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        fake_quantization(task.model, everywhere(task, "int8"), table_of(task), task.calibration()),
    ):
        task.model(torch.zeros(2, 5))
    assert "weight" not in task.model.first.__dict__
    assert not task.model.first._forward_pre_hooks


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4-weights", "fp16"])
def test_gradients_reach_every_weight(precision: str) -> None:
    task = task_of(mlp())
    with fake_quantization(task.model, everywhere(task, precision), table_of(task), task.calibration()):
        task.model(task.train.inputs["x"]).pow(2).sum().backward()
    for name, parameter in task.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_weights_gradient_is_that_of_the_rounded_weight() -> None:
    """One linear by hand: d/dW of sum(x·Wᵀ) is the sum of the rounded inputs, whatever W is."""
    task = task_of(mlp())
    plan = quantized("int8", "second", weight_bits=2)
    seen: list[Tensor] = []
    with fake_quantization(task.model, plan, table_of(task), task.calibration()):
        hook = task.model.second.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
        task.model(task.train.inputs["x"]).sum().backward()
        hook.remove()
    expected = seen[0].sum(dim=0).expand(3, -1)
    torch.testing.assert_close(task.model.second.weight.grad, expected)


def test_straight_through_by_hand() -> None:
    value = torch.tensor([0.4, 1.6], requires_grad=True)
    result = straight_through(value, value.round())
    result.pow(2).sum().backward()
    assert result.tolist() == [0.0, 2.0]
    assert value.grad.tolist() == [0.0, 4.0]


def test_no_gradient_where_a_static_range_clips() -> None:
    value = torch.tensor([-5.0, 0.3, 99.0], requires_grad=True)
    _clipped(value, Steps(0.5, 4)).sum().backward()
    assert value.grad.tolist() == [1.0 if -2 <= v <= 125.5 else 0.0 for v in (-5.0, 0.3, 99.0)]


def test_embeddings_are_left_alone() -> None:
    task = task_of(bert())
    plan = everywhere(task, "int8-weights")
    inputs = task.test.batch(range(4))[0]
    dense = run(task.model, inputs)
    with fake_quantization(task.model, plan, table_of(task), task.calibration()), torch.inference_mode():
        assert torch.equal(task.model(**inputs).logits, dense)


def test_an_empty_plan_changes_nothing() -> None:
    task = task_of(mlp())
    with fake_quantization(task.model, Plan(), table_of(task), task.calibration()):
        assert not task.model.first._forward_pre_hooks


def distance(model: nn.Module, teacher: nn.Module, task: Task, plan: Plan) -> float:
    """Mean squared difference of the simulated logits from the teacher's on training samples."""
    made = quantize(model, plan, table_of(task), task.calibration())
    inputs = task.train.batch(range(24))[0]
    return float((run(simulate(made.model, made.codes), inputs) - run(teacher, inputs)).pow(2).mean())


@pytest.mark.parametrize("settings", [{}, {"smooth": 0.5}, {"symmetric": False}], ids=str)
def test_training_inside_beats_rounding_afterwards_at_three_bits(settings: dict[str, object]) -> None:
    teacher = mlp()
    model = copy.deepcopy(teacher)
    task = task_of(model)
    plan = quantized("int8", "first", "second", weight_bits=3, **settings)
    before = distance(model, teacher, task, plan)
    value, target = task.train.inputs["x"], teacher(task.train.inputs["x"]).detach()
    with fake_quantization(model, plan, table_of(task), task.calibration()):
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _step in range(60):
            optimizer.zero_grad()
            (model(value) - target).pow(2).mean().backward()
            optimizer.step()
    assert distance(model, teacher, task, plan) < 0.7 * before


@pytest.mark.parametrize(
    ("settings", "said"), [({"rounding": "gptq"}, "rounding 'gptq'"), ({"bias_correction": True}, "bias_correction")]
)
def test_what_would_undo_the_training_is_refused_by_name(settings: dict[str, object], said: str) -> None:
    task = task_of(mlp())
    plan = quantized("int8", "first", **settings)
    with (
        pytest.raises(PlanError, match=f"layers: first: {said} would undo what fake_quantize trains"),
        fake_quantization(task.model, plan, table_of(task), task.calibration()),
    ):
        pass


def test_layers_take_their_own_settings() -> None:
    task = task_of(mlp())
    layers = {"first": LayerPlan(quantize=Quantize("int8")), "second": LayerPlan(quantize=Quantize("int4-weights", 2))}
    plan, inputs = Plan(layers=layers), task.test.batch(range(10))[0]
    made = quantize(task.model, plan, table_of(task), task.calibration())
    with fake_quantization(task.model, plan, table_of(task), task.calibration()), torch.inference_mode():
        found = task.model(**inputs)
    torch.testing.assert_close(found, run(simulate(made.model, made.codes), inputs), rtol=1e-5, atol=1e-5)
