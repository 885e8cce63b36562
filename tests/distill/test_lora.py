"""Oracles: the product of the two factors by hand, equal outputs before and after merging, untouched base weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.codes import quantize_weight
from autocompress.distill.lora import adaptable, additions
from autocompress.errors import ModelError
from autocompress.plan import Lora, Quantize
from autocompress.tasks.task import Inputs
from autocompress.weights import linearized
from tests.tiny import any_task, build_any, mlp, task_of

FAMILIES = ("bert", "distilbert", "vit", "gpt2", "llama")


def answer(model: nn.Module, inputs: Inputs) -> Tensor:
    output = model(**inputs)
    return output if isinstance(output, Tensor) else output.logits


def trained(model: nn.Module, inputs: Inputs, rate: float = 0.05) -> Tensor:
    """A few steps of what is trainable; the last output."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, rate)
    for _ in range(3):
        optimizer.zero_grad()
        answer(model, inputs).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return answer(model, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_additions_begin_at_nothing_and_are_merged_into_plain_linears(family: str) -> None:
    model = linearized(build_any(family))
    inputs = any_task(family).train.batch([0, 1])[0]
    names, kinds = [n for n, _ in model.named_parameters()], {n: type(m) for n, m in model.named_modules()}
    with torch.no_grad():
        dense = answer(model, inputs)
    with additions(model, Lora(4, 8.0)):
        torch.testing.assert_close(answer(model, inputs).detach(), dense)
        wrapped = trained(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(answer(model, inputs), wrapped, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wrapped, dense, atol=1e-3)
    assert [n for n, _ in model.named_parameters()] == names
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert all(weight.requires_grad for weight in model.parameters())


def test_only_the_additions_train_and_their_count_is_the_closed_form() -> None:
    model = build_any("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    expected = sum(4 * (m.in_features + m.out_features) for m in linears)
    with additions(model, Lora(4)):
        trainable = {name: w for name, w in model.named_parameters() if w.requires_grad}
        assert sum(weight.numel() for weight in trainable.values()) == expected
        assert all("lora_" in name for name in trainable)
        trained(model, any_task("bert").train.batch([0, 1])[0])
        inside = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
        assert all(torch.equal(inside[name], value) for name, value in before.items())
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def test_the_merged_weight_is_the_scaled_product_of_the_factors() -> None:
    model = mlp()
    base = model.first.weight.detach().clone()
    with additions(model, Lora(2, 6.0)):
        trained(model, {"x": torch.ones(3, 16)})
        down, up = (getattr(model.first, f"lora_{part}")["default"].weight.detach().clone() for part in "AB")
    torch.testing.assert_close(model.first.weight.detach(), base + 6.0 / 2 * up @ down)


def test_a_four_bit_base_is_rounded_inside_and_after() -> None:
    model = mlp()
    dense = copy.deepcopy(model)
    rounded = {
        name: quantize_weight(getattr(dense, name).weight.detach(), Quantize("int4-weights")).weight()
        for name in ("first", "second")
    }
    inputs = {"x": torch.randn(3, 16, generator=torch.Generator().manual_seed(0))}
    with additions(model, Lora(2, base="int4")):
        for name, weight in rounded.items():
            torch.testing.assert_close(getattr(model, name).base_layer.weight.detach(), weight)
            assert not torch.equal(weight, getattr(dense, name).weight)
        wrapped = trained(model, inputs)
        down, up = (getattr(model.first, f"lora_{part}")["default"].weight.detach().clone() for part in "AB")
    torch.testing.assert_close(model.first.weight.detach(), rounded["first"] + 16.0 / 2 * up @ down)
    torch.testing.assert_close(answer(model, inputs).detach(), wrapped)


def test_additions_learn_to_make_up_for_four_bits() -> None:
    dense, model = mlp(), mlp()
    inputs = {"x": torch.randn(64, 16, generator=torch.Generator().manual_seed(0))}
    target = answer(dense, inputs).detach()
    with additions(model, Lora(2, base="int4")):
        start = float((answer(model, inputs) - target).square().mean().detach())
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.Adam(weights, 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            (answer(model, inputs) - target).square().mean().backward()
            optimizer.step()
    end = float((answer(model, inputs) - target).square().mean().detach())
    assert end < 0.5 * start


def test_shared_weights_and_held_zeros_take_no_addition() -> None:
    model = linearized(build_any("gpt2"))
    assert "lm_head" not in adaptable(model)
    assert adaptable(mlp(), {"first.weight"}) == ["second"]
    held = mlp()
    before = held.first.weight.detach().clone()
    with additions(held, Lora(2), {"first.weight"}):
        trained(held, {"x": torch.ones(3, 16)})
    assert torch.equal(held.first.weight, before)


def test_names_that_end_alike_are_told_apart() -> None:
    """peft takes a target for the end of a name; here "inner" is a linear and "outer.inner" is none."""
    model = nn.Module()
    model.inner = nn.Linear(4, 4)
    model.outer = nn.ModuleDict({"inner": nn.LayerNorm(4)})
    with additions(model, Lora(1)):
        assert type(model.outer["inner"]) is nn.LayerNorm
    assert type(model.inner) is nn.Linear


def test_a_model_without_a_linear_to_add_to_is_told() -> None:
    with (
        pytest.raises(ModelError, match="lora finds no linear in Mlp to add to"),
        additions(mlp(), Lora(), {"first.weight", "second.weight"}),
    ):
        pass


def test_after_an_error_the_linears_are_back_and_nothing_is_merged() -> None:
    model = mlp()
    before = model.first.weight.detach().clone()

    def fail() -> None:
        with additions(model, Lora(2)):
            trained(model, {"x": torch.ones(3, 16)})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert type(model.first) is nn.Linear
    assert torch.equal(model.first.weight, before)
    assert all(weight.requires_grad for weight in model.parameters())


def test_factors_of_a_factorized_layer_take_additions() -> None:
    model = mlp()
    model.first = nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 48))
    assert adaptable(model) == ["first.0", "first.1", "second"]
    inputs = task_of(mlp()).train.batch([0, 1])[0]
    with additions(model, Lora(2)):
        wrapped = trained(model, inputs)
    torch.testing.assert_close(answer(model, inputs).detach(), wrapped, rtol=1e-4, atol=1e-5)
