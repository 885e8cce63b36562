"""Oracles: least squares on the inputs that hooks collect, `prune.repair`, and the whole model's output error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.bank import Bank
from autocompress.compressing.choices import FirstOnes, Kept
from autocompress.compressing.prune import DAMPING, repair
from autocompress.compressing.sequential import Moments, moments_between, repair_in_sequence, solve, steps_of
from autocompress.compressing.shape import shape
from autocompress.errors import ModelError
from autocompress.plan import Plan, Prune
from autocompress.tasks.task import Examples
from tests.compressing.conftest import Family
from tests.tiny import bank_of, bert, run, spread, task_of


def halved(family: Family, repair: str) -> Plan:
    """Half of every attention's heads and a quarter of all neurons."""
    shares = {"heads": 0.5, "neurons": 0.25}
    groups = {g.name: Prune(int(g.size * shares[g.kind])) for g in family.table.groups if g.kind in shares}
    return Plan(groups, repair=repair)


def collected(model: nn.Module, name: str, examples: Examples) -> Tensor:
    """All inputs of a layer but those of padding, ``(n, in)``."""
    seen: list[Tensor] = []
    hook = lambda _module, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))  # noqa: E731
    handle = model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for _rows, inputs, _targets in examples.batches(32):
            model(**inputs)
            if "attention_mask" in inputs:
                seen[-1] = seen[-1][inputs["attention_mask"].reshape(-1) != 0]
    handle.remove()
    return torch.cat(seen).double()


def output_error(model: nn.Module, family: Family) -> float:
    """Squared distance of the logits from the dense model's, over the calibration samples."""
    lost = 0.0
    for _rows, inputs, _targets in family.task.calibration().batches(32):
        lost += float((run(model, inputs) - run(family.task.model, inputs)).pow(2).sum())
    return lost


def moments_of(before: Tensor, after: Tensor) -> Moments:
    return Moments(before.T @ after / len(after), after.T @ after / len(after), float(before.pow(2).mean()))


def test_the_solution_is_that_of_ridge_regression() -> None:
    before, _ = spread(200, 6, seed=0)
    columns = torch.tensor([0, 2, 5])
    after = before[:, columns] + 0.3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1)).double()
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).double()
    # Rows that pull W' to the dense columns stand under the samples; lstsq knows nothing of normal equations.
    pull = (200 * DAMPING * before.pow(2).mean()).sqrt()
    left = torch.cat([after, pull * torch.eye(3).double()])
    right = torch.cat([before @ weight.T, pull * weight[:, columns].T])
    expected = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(solve(weight, moments_of(before, after), columns), expected, rtol=1e-9, atol=1e-9)


def test_with_dense_inputs_the_solution_is_the_repair_from_dense_inputs() -> None:
    inputs, gram = spread(200, 8, seed=3)
    inputs[:, 1] = 0.0  # an input that never fires
    gram = inputs.T @ inputs / 200
    weight, columns = torch.randn(5, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([0, 1, 4, 7])
    found = solve(weight, moments_of(inputs, inputs[:, columns]), columns)
    torch.testing.assert_close(found, repair(weight, gram, columns), rtol=1e-5, atol=1e-6)


def test_nothing_lost_is_nothing_changed() -> None:
    inputs, _ = spread(100, 5, seed=5)
    weight = torch.randn(3, 5).double()
    torch.testing.assert_close(solve(weight, moments_of(inputs, inputs), torch.arange(5)), weight)


def test_inputs_that_are_all_zero_leave_the_dense_columns() -> None:
    weight, columns = torch.randn(3, 5), torch.tensor([1, 3])
    zeros = torch.zeros(10, 5).double()
    assert torch.equal(solve(weight, moments_of(zeros, zeros[:, columns]), columns), weight[:, columns])


def test_each_layer_is_solved_on_what_its_new_predecessors_give(family: Family) -> None:
    dense, plan = family.task.model, halved(family, "sequential")
    examples = family.task.calibration()
    small = shape(dense, plan, family.table, family.bank)
    for name in [g.consumers[0].name for g in family.table.groups if g.name in plan.groups]:
        before, after = collected(dense, name, examples), collected(small, name, examples)
        weight = dense.get_submodule(name).weight.detach()
        group = next(g for g in family.table.groups if g.consumers and g.consumers[0].name == name)
        kept = family.bank.kept(group, plan.groups[group.name], 0).tolist()
        columns = torch.tensor(group.consumers[0].positions(kept))
        expected = solve(weight, moments_of(before, after), columns)
        torch.testing.assert_close(small.get_submodule(name).weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_the_whole_model_errs_no_more_than_with_repair_from_dense_inputs(family: Family) -> None:
    found = {
        repair: output_error(shape(family.task.model, halved(family, repair), family.table, family.bank), family)
        for repair in ("dense", "sequential")
    }
    assert found["sequential"] <= found["dense"]


def test_biases_and_layers_that_lost_no_inputs_stay(family: Family) -> None:
    plans = [halved(family, repair) for repair in ("dense", "sequential")]
    before, after = (shape(family.task.model, plan, family.table, family.bank).state_dict() for plan in plans)
    solved = {f"{g.consumers[0].name}.weight" for g in family.table.groups if g.name in plans[0].groups}
    assert {name for name in before if not torch.equal(before[name], after[name])} <= solved


def test_a_group_without_repair_is_left_alone(family: Family) -> None:
    group = next(g for g in family.table.groups if g.kind == "neurons")
    plans = [Plan({group.name: Prune(8, repair=False)}, repair=repair) for repair in ("dense", "sequential")]
    before, after = (shape(family.task.model, plan, family.table, family.bank).state_dict() for plan in plans)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_hidden_width_and_all_else_together_still_run(family: Family) -> None:
    hidden = next(g for g in family.table.groups if g.kind == "hidden")
    plan = halved(family, "sequential")
    plan = Plan({**plan.groups, hidden.name: Prune(hidden.size - 8)}, repair="sequential")
    small = shape(family.task.model, plan, family.table, family.bank)
    assert output_error(small, family) <= output_error(
        shape(family.task.model, Plan(plan.groups), family.table, family.bank), family
    )


def test_a_second_assembly_does_not_solve_again(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = halved(family, "sequential")
    first = shape(family.task.model, plan, family.table, Bank(tmp_path, family.task, family.table))
    monkeypatch.setattr("autocompress.compressing.bank.repair_in_sequence", None)
    second = shape(family.task.model, plan, family.table, Bank(tmp_path, family.task, family.table))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_first_ones_repair_nothing(family: Family) -> None:
    plan = halved(family, "sequential")
    assert shape(family.task.model, plan, family.table, FirstOnes(family.task.model)) is not None


def test_linears_of_one_input_share_a_step(tmp_path: Path) -> None:
    task = task_of(bert())
    block = "bert.encoder.layer.0"
    names = [f"{block}.output.dense", *(f"{block}.attention.self.{name}" for name in ("query", "key", "value"))]
    steps = steps_of(task.model, names, task.calibration())
    assert [step.names for step in steps] == [tuple(names[1:]), (names[0],)]
    assert [step.calls for step in steps] == [1, 1]


class Looped(nn.Module):
    """One linear that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(self.body(x)))


def test_moments_of_a_layer_that_is_called_twice_hold_both_inputs() -> None:
    torch.manual_seed(0)
    model, other = Looped().eval(), Looped().eval()
    examples = Examples({"x": torch.randn(40, 16)}, torch.zeros(40))
    step = steps_of(model, ["body"], examples)[0]
    assert step.calls == 2
    found = moments_between(model, other, step, examples)
    before, after = collected(model, "body", examples), collected(other, "body", examples)
    expected = moments_of(before, after)
    assert len(before) == 80
    torch.testing.assert_close(found.cross, expected.cross, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.own, expected.own, rtol=1e-4, atol=1e-5)
    assert found.power == pytest.approx(expected.power, rel=1e-5)


class Convolutional(nn.Module):
    """Two convolutions, the second with another stride and a padding that reflects."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3)
        self.second = nn.Conv2d(channels, 4, 3, stride=2, padding=1, padding_mode="reflect")

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(pixel_values))).mean(dim=(2, 3))


def test_a_convolution_takes_over_from_channels_that_are_gone() -> None:
    torch.manual_seed(1)
    dense, small = Convolutional(6).eval(), Convolutional(4).eval()
    channels = torch.tensor([0, 1, 3, 5])
    columns = [int(c) * 9 + i for c in channels for i in range(9)]
    small.load_state_dict({**dense.state_dict(), **_cut(dense, channels)})
    examples = Examples({"pixel_values": torch.randn(30, 1, 9, 9)}, torch.zeros(30))

    def error() -> float:
        inputs, _targets = examples.batch(range(30))
        maps = [m.second(torch.relu(m.first(inputs["pixel_values"]))) for m in (dense, small)]
        return float((maps[0] - maps[1]).detach().pow(2).sum())

    before = error()
    solved = repair_in_sequence(small, dense, ["second"], Kept(columns={"second": columns}), examples)
    assert solved["second"].shape == (4, 36)
    assert error() < 0.9 * before


def _cut(dense: Convolutional, channels: Tensor) -> dict[str, Tensor]:
    return {
        "first.weight": dense.first.weight.detach()[channels],
        "first.bias": dense.first.bias.detach()[channels],
        "second.weight": dense.second.weight.detach()[:, channels],
    }


def test_inputs_that_are_not_numbers_are_an_error_that_names_the_layer() -> None:
    dense, small = Looped().eval(), Looped().eval()
    with torch.no_grad():
        small.body.bias[0] = torch.nan
    examples = Examples({"x": torch.randn(4, 16)}, torch.zeros(4))
    kept = Kept(columns={"body": list(range(16))})
    with pytest.raises(ModelError, match=r"^layer body: its inputs in the compressed model hold NaN or infinity$"):
        repair_in_sequence(small, dense, ["body"], kept, examples)


def test_modes_are_as_before_and_no_hook_is_left(tmp_path: Path) -> None:
    task = task_of(bert())
    bank = bank_of(task, tmp_path)
    group = next(g for g in bank.table.groups if g.kind == "neurons")
    small = shape(task.model, Plan({group.name: Prune(16)}), bank.table, bank).train()
    kept = bank.kept(group, Prune(16), 0).tolist()
    name = group.consumers[0].name
    repair_in_sequence(small, task.model, [name], Kept(columns={name: kept}), task.calibration())
    assert all(module.training for module in small.modules())
    assert not any(module.training for module in task.model.modules())
    assert not any(module._forward_pre_hooks for model in (small, task.model) for module in model.modules())
