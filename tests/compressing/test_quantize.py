"""Oracles: the calibrated ranges, hand arithmetic, and the float model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.calibrate import gram_matrices, input_ranges, output_ranges
from autocompress.compressing.codes import Codes, Steps, quantize_weight, steps_of
from autocompress.compressing.quantize import Quantized, quantize, simulate, targets
from autocompress.compressing.shape import shape
from autocompress.errors import DataError, ModelError
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, Quantize
from autocompress.tasks.task import Task
from tests.tiny import Cnn, bank_of, bert, cnn, mlp, quantized, run, table_of, task_of, tensors

EMBEDDING = "bert.embeddings.word_embeddings"


def quantize_task(task: Task, plan: Plan) -> Quantized:
    return quantize(task.model, plan, table_of(task), task.calibration())


def off(made: Quantized, task: Task) -> float:
    """Relative distance of the simulated logits from the dense model's."""
    inputs = task.validation.batch(range(12))[0]
    dense = run(task.model, inputs)
    return float((run(simulate(made.model, made.codes), inputs) - dense).norm() / dense.norm())


@pytest.mark.parametrize("calibrator", ["percentile", "min-max", "mse"])
@pytest.mark.parametrize("bits", [8, 4])
def test_static_codes_carry_the_calibrated_range(calibrator: str, bits: int) -> None:
    task = task_of(mlp())
    plan = quantized("int8", "first", "second", calibrator=calibrator, activation_bits=bits)
    spans = input_ranges(task.model, ["first", "second"], task.calibration(), calibrator, levels=2**bits)
    for name, codes in quantize_task(task, plan).codes.items():
        assert codes.input == steps_of(spans[name], 2**bits)


@pytest.mark.parametrize("precision", ["int8-dynamic", "int4-weights", "fp16", "fp8"])
def test_only_static_codes_carry_a_range(precision: str) -> None:
    codes = quantize_task(task_of(mlp()), quantized(precision, "first")).codes["first"]
    assert (codes.input, codes.output) == (None, None)


def test_a_convolution_rounds_its_output_once_with_the_layer_that_reads_it() -> None:
    task = task_of(cnn())
    codes = quantize_task(task, quantized("int8", "first", "second", "head")).codes
    spans = output_ranges(task.model, {"first": True, "second": True}, task.calibration())
    assert codes["first"].output == steps_of(spans["first"])
    assert codes["first"].output.zero == 0  # behind a relu
    assert codes["second"].input == codes["first"].output
    assert codes["second"].output == steps_of(spans["second"])
    assert codes["head"].output is None


def test_inputs_of_fewer_levels_are_rounded_by_themselves() -> None:
    codes = quantize_task(task_of(cnn()), quantized("int8", "first", "second", activation_bits=4)).codes
    assert codes["second"].input.levels == 16
    assert codes["first"].output.levels == 256


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4-weights", "fp16", "fp8"])
def test_a_weight_without_integers_is_refused_by_name(precision: str, value: float) -> None:
    model = mlp()
    task = task_of(model)
    table = table_of(task)
    model.second.weight.data[1, 2] = value
    with pytest.raises(ModelError, match="layer second: its weight holds NaN or infinity"):
        quantize(model, quantized(precision, "first", "second"), table, task.calibration())


def test_a_weight_beyond_half_precision_is_refused_by_name() -> None:
    model = mlp()
    model.second.weight.data[1, 2] = 70000.0
    with pytest.raises(ModelError, match="layer second: its weight holds 70000, and fp16 ends at 65504"):
        quantize_task(task_of(model), quantized("fp16", "second"))


@pytest.mark.parametrize("settings", [{}, {"smooth": 0.5}, {"rounding": "gptq"}], ids=str)
def test_calibration_activations_without_a_range_are_refused_by_name(settings: dict[str, object]) -> None:
    task = task_of(mlp())
    table, calibration = table_of(task), tensors("x", (16,), 5, 0)
    calibration.inputs["x"][3, 3] = float("inf")
    with pytest.raises(DataError, match="layer first: its calibration inputs hold NaN or infinity"):
        quantize(task.model, quantized("int8", "first", **settings), table, calibration)


def test_gptq_refuses_grouped_convolutions_by_name() -> None:
    with pytest.raises(ModelError, match="layer second: gptq does not exist for grouped convolutions"):
        quantize_task(task_of(cnn()), quantized("int8", "second", rounding="gptq"))


def test_a_kind_without_the_precision_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="layer first: int4-weights does not exist for Conv2d"):
        quantize_task(task_of(cnn()), quantized("int4-weights", "first"))


def test_factors_take_the_precision_of_their_layer_and_removed_layers_none(tmp_path: Path) -> None:
    task = task_of(bert())
    bank = bank_of(task, tmp_path)
    plan = Plan({"bert.encoder.layer.1": Prune(0)}, {"bert.pooler.dense": LayerPlan(Factorize(8), Quantize("int8"))})
    small = shape(task.model, plan, bank.table, bank)
    codes = quantize(small, plan, bank.table, task.calibration()).codes
    assert {name: made.precision for name, made in codes.items()} == {
        "bert.pooler.dense.0": "int8",
        "bert.pooler.dense.1": "int8",
    }


@pytest.mark.parametrize(
    ("precision", "second"), [("int8-weights", False), ("int4-weights", True), ("fp16", True)], ids=str
)
def test_factors_of_an_embedding_take_the_precision_where_their_kind_has_it(precision: str, second: bool) -> None:
    model = bert()
    low = nn.Sequential(nn.Embedding(60, 32), nn.Linear(32, 32, bias=False))
    model.set_submodule(EMBEDDING, low)
    found = targets(model, quantized(precision, EMBEDDING))
    assert list(found) == [f"{EMBEDDING}.0", f"{EMBEDDING}.1"][: 1 + second]


def test_an_empty_plan_needs_no_integers_and_no_copy() -> None:
    task = task_of(mlp())
    made = quantize_task(task, Plan())
    assert made.codes == {}
    assert made.model is task.model


def test_only_what_changes_floats_copies_the_model() -> None:
    task = task_of(mlp())
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    assert quantize_task(task, quantized("int8", "first")).model is task.model
    for settings in ({"smooth": 0.5}, {"bias_correction": True}):
        assert quantize_task(task, quantized("int8", "first", **settings)).model is not task.model
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert not task.model.first._forward_pre_hooks


def test_gptq_rounds_with_the_second_moments_of_the_model_at_hand() -> None:
    task = task_of(mlp())
    settings = Quantize("int4-weights", 3, rounding="gptq")
    made = quantize_task(task, quantized("int4-weights", "second", weight_bits=3, rounding="gptq"))
    gram = gram_matrices(task.model, ["second"], task.calibration())["second"]
    expected = quantize_weight(task.model.second.weight.detach(), settings, gram=gram)
    assert torch.equal(made.codes["second"].values, expected.values)


def output_errors(make: Callable[[], nn.Module], name: str, precision: str, bits: int) -> list[float]:
    """Squared output error of one layer on calibration inputs, with nearest and with gptq."""
    task, found = task_of(make()), []
    seen: list[Tensor] = []
    module = task.model.get_submodule(name)
    with torch.no_grad():
        handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        task.model(**task.calibration().batch(range(24))[0])
        handle.remove()
        for rounding in ("nearest", "gptq"):
            made = quantize_task(task, quantized(precision, name, weight_bits=bits, rounding=rounding))
            dense = module(seen[0])
            twin = torch.func.functional_call(module, {"weight": made.codes[name].weight()}, (seen[0],))
            found.append(float((twin - dense).pow(2).sum()))
    return found


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(
    ("make", "name", "precision"),
    [
        (mlp, "second", "int8"),
        (bert, "bert.encoder.layer.0.output.dense", "int8-dynamic"),
        (bert, "bert.encoder.layer.0.output.dense", "int4-weights"),
        (cnn, "first", "int8"),
    ],
    ids=["linear", "dynamic", "groups", "convolution"],
)
def test_gptq_errs_less_on_a_models_own_activations(
    make: Callable[[], nn.Module], name: str, precision: str, bits: int
) -> None:
    nearest, gptq = output_errors(make, name, precision, bits)
    assert gptq < nearest


def test_simulate_copies_and_puts_the_codes_weights_in() -> None:
    task = task_of(mlp())
    codes = quantize_task(task, quantized("int4-weights", "first")).codes
    before = task.model.first.weight.clone()
    twin = simulate(task.model, codes)
    assert torch.equal(task.model.first.weight, before)
    assert torch.equal(twin.first.weight, codes["first"].weight())
    assert torch.equal(twin.second.weight, task.model.second.weight)


def test_simulate_by_hand() -> None:
    """One linear of static int8: dequantized weight times the input on its grid, then the output on its own."""
    weight = torch.tensor([[10, -20]], dtype=torch.int8)
    codes = Codes("int8", weight, torch.tensor([0.5]), input=Steps(0.25, 8), output=Steps(100.0, 255))
    inputs = torch.tensor([[0.3, 1000.0]])  # on the grid: 0.25, and clipped to (255 - 8) / 4
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    assert float(simulate(model, {"0": codes})(inputs)) == -600.0
    exact = Codes("int8", weight, torch.tensor([0.5]), input=Steps(0.25, 8))
    assert float(simulate(model, {"0": exact})(inputs)) == 0.25 * 5.0 - 61.75 * 10.0


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_stay_near_the_float_model(symmetric: bool, granularity: str) -> None:
    """Sanity of the whole verb: eight bits of a small network change little, and fewer bits change more."""
    task = task_of(cnn())
    errors = [
        off(quantize_task(task, quantized("int8", "first", "second", "head", weight_bits=bits, symmetric=symmetric,
                                          granularity=granularity)), task)
        for bits in (8, 4, 2)
    ]  # fmt: skip
    assert errors[0] < 0.05
    assert errors == sorted(errors)


class NormCnn(Cnn):
    """The same with a BatchNorm behind each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        for norm in (self.first_norm, self.second_norm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            nn.init.uniform_(norm.running_var, 0.1, 1)
            nn.init.normal_(norm.running_mean)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = torch.relu(self.first_norm(self.first(pixel_values)))
        hidden = torch.relu(self.second_norm(self.second(hidden)))
        return self.head(hidden.mean(dim=(2, 3)))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_batchnorms_fold_into_the_convolutions_that_take_integers(precision: str) -> None:
    torch.manual_seed(0)
    model = NormCnn().eval()
    pixels = tensors("pixel_values", (1, 8, 8), 24, 0)
    task = Task("norms", model, pixels, pixels, pixels)
    made = quantize_task(task, quantized(precision, "first"))
    assert isinstance(made.model.first_norm, nn.Identity)
    assert isinstance(made.model.second_norm, nn.BatchNorm2d)
    inputs = pixels.batch(range(24))[0]
    torch.testing.assert_close(run(made.model, inputs), run(model, inputs), rtol=1e-5, atol=1e-5)
