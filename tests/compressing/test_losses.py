"""Oracle: the slow twin, a whole model built as every candidate is and passed through in full, sample by sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autocompress.compressing import losses as module
from autocompress.compressing.bank import Bank
from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.losses import losses
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.sensitivity import sensitivities
from autocompress.compressing.shape import shape
from autocompress.plan import Factorize, GlobalMask, LayerPlan, Mask, Plan, Prune, Quantize
from autocompress.tasks.task import Task, logits_of
from tests.adapters.test_channels import Residual
from tests.tiny import ALL_FAMILIES, any_task, bank_of, mlp, quantized, task_of, tensors


def slow(bank: Bank, option: Plan) -> float:
    """Mean KL(dense ‖ changed) in nats; in one batch where ranges are those of a batch."""
    task = bank.passes.task
    model = shape(task.source, option, bank.table, bank)
    if option.groups or any(lp.factorize or lp.mask for lp in option.layers.values()):
        refresh_batchnorm(model, task.calibration())
    made = quantize(model, option, bank.table, task.calibration())
    twin, total, count = simulate(made.model, made.codes).eval(), 0.0, 0
    dynamic = any(lp.precision == "int8-dynamic" for lp in option.layers.values())
    with torch.inference_mode():
        for _rows, inputs, _targets in task.calibration().batches(32 if dynamic else 1):
            dense, changed = (logits_of(m(**inputs)).double().log_softmax(-1) for m in (task.model, twin))
            kl = (dense.exp() * (dense - changed)).sum(-1)
            kl = kl[inputs["attention_mask"].bool()] if kl.dim() == 2 else kl
            total, count = total + float(kl.sum()), count + kl.numel()
    return total / count


def residual() -> Task:
    """A residual network whose batch norms' statistics are those of its data."""
    torch.manual_seed(0)
    examples = {split: tensors("x", (3, 8, 8), count, seed) for split, count, seed in
                (("train", 40, 0), ("validation", 12, 1), ("test", 10, 2))}  # fmt: skip
    model = Residual(pads=False).eval()
    refresh_batchnorm(model, examples["train"])
    return Task(name="residual", model=model, **examples, batch_size=8)


def options_of(bank: Bank) -> list[Plan]:
    """Each kind of change, early and late, alone and together."""
    table = bank.table
    linears = [la.name for la in table.layers if la.kind != "embedding" and la.allows("factorize")]
    counted = [g for g in table.groups if not g.removable and g.kind != "hidden"]
    options = [Plan({g.name: Prune(g.size // 2)}) for g in (*counted[:1], *counted[-1:])]
    options += [Plan({name: Prune(0)}) for name in (*table.blocks[:1], *table.blocks[-1:])]
    options += [Plan(layers={name: LayerPlan(Factorize(2))}) for name in (linears[0], linears[-1])]
    options += [Plan(layers={linears[-2]: LayerPlan(mask=Mask(0.5))})]
    last = {linears[-1]: LayerPlan(Factorize(2), Quantize("int8"))}
    return [*options, Plan({g.name: Prune(g.size // 2) for g in counted[-1:]}, last)]


@pytest.mark.parametrize("family", [*ALL_FAMILIES, "residual"])
def test_losses_are_those_of_a_full_pass(family: str, tmp_path: Path) -> None:
    bank = bank_of(residual() if family == "residual" else any_task(family), tmp_path)
    options = options_of(bank)
    found = losses(bank, options)
    assert list(found) == options
    for option in options:
        assert found[option] == pytest.approx(slow(bank, option), rel=1e-3, abs=1e-7), option
    assert max(found.values()) > 1e-3


def test_zeros_over_all_layers_and_the_hidden_width_change_everything(tmp_path: Path) -> None:
    bank = bank_of(any_task("bert"), tmp_path)
    hidden = next(group for group in bank.table.groups if group.kind == "hidden")
    options = [Plan(mask=GlobalMask(0.5, "magnitude")), Plan({hidden.name: Prune(hidden.size // 2)})]
    found = losses(bank, options)
    for option in options:
        assert found[option] == pytest.approx(slow(bank, option), rel=1e-3)


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2"])
def test_what_only_quantizes_loses_what_its_sensitivity_says(family: str, tmp_path: Path) -> None:
    """Oracle: `compressing.sensitivity`, which swaps layers in the dense model."""
    bank = bank_of(any_task(family), tmp_path)
    names = [la.name for la in bank.table.layers if la.kind == "linear" and la.allows("quantize")]
    options = [quantized("int8", names[0]), quantized("int4-weights", names[-1]), quantized("int4-weights", *names)]
    found, known = losses(bank, options), sensitivities(bank, options)
    assert [found[option] for option in options] == pytest.approx([known[option].kl for option in options], rel=1e-3)


def test_the_empty_plan_loses_nothing_and_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shape", None)
    assert losses(bank_of(task_of(mlp()), tmp_path), [Plan(), Plan()]) == {Plan(): 0.0}


def test_the_dense_model_is_left_as_it_was(tmp_path: Path) -> None:
    task = any_task("bert")
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    bank = bank_of(task, tmp_path)
    losses(bank, options_of(bank))
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert not any("forward" in part.__dict__ for part in task.model.modules())


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[Plan]:
    """Options that are computed; a kill at one of them."""
    real, computed = module._Dense.divergence, []

    def divergence(self: object, option: Plan) -> float:
        if len(computed) == stop_at:
            raise KeyboardInterrupt
        computed.append(option)
        return real(self, option)

    monkeypatch.setattr(module._Dense, "divergence", divergence)
    return computed


def test_after_a_kill_nothing_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = any_task("vit")
    options = options_of(bank_of(task, tmp_path))
    with monkeypatch.context() as patch:
        counting(patch, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            losses(bank_of(task, tmp_path), options)
    said: list[str] = []
    computed = counting(monkeypatch)
    first = losses(bank_of(task, tmp_path), options, say=said.append)
    assert computed == options[3:]
    assert said[-1] == f"what single choices lose: {len(options)} of {len(options)}"
    assert losses(bank_of(task, tmp_path), options[::-1]) == first
    assert computed == options[3:]


def test_a_limit_leaves_the_most_wanted_and_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a clock on which each option takes a second."""
    bank = bank_of(any_task("vit"), tmp_path)
    options, taken = options_of(bank), list[Plan]()
    real = module._Dense.divergence

    def divergence(self: object, option: Plan) -> float:
        taken.append(option)
        return real(self, option)

    def clock() -> float:
        return float(len(taken))

    monkeypatch.setattr(module._Dense, "divergence", divergence)
    assert list(losses(bank, options, limit_s=2.5, clock=clock)) == options[:3]
    assert list(losses(bank, options, limit_s=-1.0, clock=clock)) == options[:3]
    assert list(losses(bank, options[3:], limit_s=-1.0, clock=clock)) == options[3:4], "at least one"


def test_fewer_samples_are_another_question(tmp_path: Path) -> None:
    bank = bank_of(any_task("vit"), tmp_path)
    option = options_of(bank)[0]
    assert losses(bank, [option], samples=4)[option] != losses(bank, [option], samples=24)[option]
