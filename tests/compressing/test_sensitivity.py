"""Oracle: the slow twin, a whole model with these layers simulated, compared with the dense one sample by sample."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.compressing import sensitivity
from autocompress.compressing.bank import Bank
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.sensitivity import Sensitivity, sensitivities
from autocompress.compressing.shape import shape
from autocompress.plan import Plan
from autocompress.tasks.task import Examples, logits_of
from tests.tiny import ALL_FAMILIES, CLASSES, any_task, bank_of, cnn, mlp, quantized, task_of


def slow(bank: Bank, option: Plan) -> float:
    """KL(dense ‖ the whole model shaped, rounded and simulated), the way of every candidate.

    Sample by sample, so that nothing pads, but where ranges are those of a batch.
    """
    task = bank.passes.task
    model = shape(task.source, Plan(), bank.table, bank)
    made = quantize(model, option, bank.table, task.calibration())
    twin, total, count = simulate(made.model, made.codes), 0.0, 0
    dynamic = any(lp.precision == "int8-dynamic" for lp in option.layers.values())
    with torch.inference_mode():
        for _rows, inputs, _targets in task.calibration().batches(32 if dynamic else 1):
            dense, rounded = (logits_of(m(**inputs)).double().log_softmax(-1) for m in (task.model, twin))
            kl = (dense.exp() * (dense - rounded)).sum(-1)
            kl = kl[inputs["attention_mask"].bool()] if kl.dim() == 2 else kl
            total, count = total + float(kl.sum()), count + kl.numel()
    return total / count


def linears(bank: Bank) -> list[str]:
    return [layer.name for layer in bank.table.layers if layer.kind == "linear" and layer.allows("quantize")]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_kl_is_that_of_the_whole_model(family: str, tmp_path: Path) -> None:
    bank = bank_of(any_task(family), tmp_path)
    names = linears(bank)
    options = [quantized("int8", names[-1]), quantized("int4-weights", names[len(names) // 2])]
    options += [quantized("int8-dynamic", names[0]), quantized("int4-weights", *names)]
    embedding = next((la.name for la in bank.table.layers if la.kind == "embedding" and la.allows("quantize")), None)
    options += [quantized("int8-weights", embedding)] if embedding else []
    found = sensitivities(bank, options)
    for option in options:
        assert found[option].measured
        assert found[option].kl == pytest.approx(slow(bank, option), rel=1e-3, abs=1e-8)
    assert found[options[3]].kl > 0


@pytest.mark.parametrize("names", [("first",), ("second",), ("head",), ("first", "second", "head")], ids="+".join)
def test_kl_of_convolutions_is_that_of_the_whole_model(names: tuple[str, ...], tmp_path: Path) -> None:
    bank = bank_of(task_of(cnn()), tmp_path)
    option = quantized("int8", *names)
    assert sensitivities(bank, [option])[option].kl == pytest.approx(slow(bank, option), rel=1e-3)


@pytest.mark.parametrize("settings", [{"smooth": 0.5}, {"bias_correction": True}, {"rounding": "gptq"}], ids=str)
def test_kl_with_settings_that_change_the_float_model(settings: dict[str, object], tmp_path: Path) -> None:
    bank = bank_of(any_task("vit"), tmp_path)
    options = [quantized("int8", name, weight_bits=4, **settings) for name in linears(bank)[:3]]
    found = sensitivities(bank, options)
    for option in options:
        assert found[option].kl == pytest.approx(slow(bank, option), rel=1e-3)


def test_the_dense_model_is_left_as_it_was(tmp_path: Path) -> None:
    task = any_task("bert")
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    modules = dict(task.model.named_modules())
    bank = bank_of(task, tmp_path)
    sensitivities(bank, [quantized("int8", name) for name in linears(bank)], limit_s=0.0)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert dict(task.model.named_modules()) == modules
    assert not any("forward" in module.__dict__ for module in modules.values())


def test_a_swap_costs_the_suffix_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: calls counted; the layers before the swapped one run once, in the dense pass."""
    bank = bank_of(any_task("bert", layers=3), tmp_path)
    names = linears(bank)
    last = [name for name in names if name.startswith(bank.table.blocks[-1])]
    option = quantized("int8", last[-1])
    model = bank.model
    sensitivities(bank, [option])  # whatever calibration needs is counted apart
    twins = {last[-1]: simulate(model.get_submodule(last[-1]), {})}
    calls = dict.fromkeys(names, 0)
    numbers = {id(model.get_submodule(name)): name for name in names}
    forward = nn.Linear.forward

    def counted(module: nn.Linear, value: torch.Tensor) -> torch.Tensor:
        if id(module) in numbers:
            calls[numbers[id(module)]] += 1
        return forward(module, value)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    sensitivity.divergences(model, [twins, twins], bank.passes.examples, model, (*bank.table.blocks, *names))
    place = names.index(last[-1])
    assert {calls[name] for name in names[:place]} == {1}
    assert {calls[name] for name in names[place + 1 :]} == {3}


def test_what_is_known_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "PART", 2)
    task = any_task("vit")
    bank = bank_of(task, tmp_path)
    options = [quantized("int8", name) for name in linears(bank)[:5]]
    said: list[str] = []
    works = sensitivity.quantize
    calls = []

    def stops(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return works(*given)

    monkeypatch.setattr(sensitivity, "quantize", stops)
    with pytest.raises(KeyboardInterrupt):
        sensitivities(bank, options)
    calls[:] = [None] * 3
    first = sensitivities(bank_of(task, tmp_path), options, say=said.append)
    assert len(calls) == 4, "one part of the three was left"
    again = sensitivities(bank_of(task, tmp_path), options, say=said.append)
    assert len(calls) == 4
    assert again == first
    assert set(first) == {Plan(), *options}


def test_fewer_samples_are_another_question(tmp_path: Path) -> None:
    bank = bank_of(any_task("vit"), tmp_path)
    option = quantized("int4-weights", linears(bank)[0])
    few, all_of_them = (sensitivities(bank, [option], samples=n)[option].kl for n in (4, 24))
    assert few != all_of_them
    assert few > 0


def test_the_empty_plan_costs_nothing(tmp_path: Path) -> None:
    assert sensitivities(bank_of(any_task("vit"), tmp_path), [Plan()]) == {Plan(): Sensitivity(0.0, True)}


def test_without_time_a_few_are_measured_and_the_rest_predicted(tmp_path: Path) -> None:
    """Oracle: all of them measured; predictions are within a factor of three, and mostly in the right order."""
    bank = bank_of(any_task("bert", layers=3), tmp_path)
    options = [quantized(precision, name) for name in linears(bank) for precision in ("int8", "int4-weights")]
    predicted = sensitivities(bank, options, limit_s=0.0)
    assert sum(found.measured for option, found in predicted.items() if option != Plan()) == 2
    measured = sensitivities(bank, options)
    ratios = [predicted[o].kl / measured[o].kl for o in options]
    assert min(ratios) > 1 / 3
    assert max(ratios) < 3
    for precision in ("int8", "int4-weights"):
        alike = [o for o in options if next(iter(o.layers.values())).precision == precision]
        orders = [sorted(range(len(alike)), key=lambda i: f[alike[i]].kl) for f in (predicted, measured)]
        ranks = torch.tensor([[order.index(i) for i in range(len(alike))] for order in orders]).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.7


class Shared(nn.Module):
    """A table of positions that all samples share, added to the inputs ``(n, 4)``, before a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(1, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.positions(torch.zeros(1, dtype=torch.long)))


@pytest.mark.parametrize("layer", ["head", "positions"])
def test_perturbation_is_the_second_order_of_kl(layer: str, tmp_path: Path) -> None:
    """Oracle: ½·Σ δᵀ(diag p - p·pᵀ)δ in closed form; random signs leave a few per cent."""
    torch.manual_seed(0)
    model = Shared().eval()
    inputs = torch.randn(4096, 4)
    examples = Examples({"x": inputs}, torch.zeros(4096, dtype=torch.long))
    twin = nn.Linear(4, CLASSES) if layer == "head" else nn.Embedding(1, 4)
    floats = model.get_submodule(layer)
    with torch.no_grad():
        twin.weight.copy_(floats.weight + 0.05 * torch.randn(floats.weight.shape))
        if layer == "head":
            twin.bias.copy_(floats.bias)
        logits = model(inputs)
        sums = inputs + model.positions.weight
        change = sums @ (twin.weight - floats.weight).T
        if layer == "positions":
            change = ((twin.weight - floats.weight) @ model.head.weight.T).expand_as(logits)
        p = logits.softmax(-1)
        expected = 0.5 * ((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).mean()
    found = sensitivity.perturbations(model, [{layer: twin}], examples)
    assert found[0] == pytest.approx(float(expected), rel=0.06 if layer == "head" else 0.3)


def test_an_mlp_without_blocks_is_measured(tmp_path: Path) -> None:
    bank = bank_of(task_of(mlp()), tmp_path)
    options = [quantized("int8", "first", weight_bits=3), quantized("int8", "second", weight_bits=3)]
    found = sensitivities(bank, options)
    for option in options:
        assert found[option].kl == pytest.approx(slow(bank, option), rel=1e-3)
    assert math.isfinite(found[options[0]].kl)
