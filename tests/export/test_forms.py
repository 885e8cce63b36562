"""Oracles: the codes read back from the file, ONNX's own quantizer, and torch's simulation of the integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compressing.quantize import LEGAL
from autocompress.export.forms import pack_four_bits
from autocompress.runtimes import installed_runtimes
from tests.export.conftest import Exported, unpack
from tests.tiny import bert, mlp, quantized, task_of


def test_pack_four_bits_by_hand() -> None:
    packed = pack_four_bits(np.array([[-8, 7, 0, 1]], dtype=np.int8))
    assert packed.dtype == np.uint8
    assert packed.tolist() == [[0xF0, 0x98]]


SETTINGS = [
    *(
        (precision, {"weight_bits": bits, "granularity": granularity, "symmetric": symmetric})
        for precision in ("int8", "int8-dynamic", "int8-weights")
        for bits in (2, 5, 8)
        for granularity in ("channel", "tensor")
        for symmetric in (True, False)
    ),
    *(
        ("int4-weights", {"weight_bits": bits, "symmetric": symmetric})
        for bits in (2, 3, 4)
        for symmetric in (True, False)
    ),
    ("fp16", {}),
    ("int8", {"rounding": "gptq", "weight_bits": 3, "smooth": 0.5, "bias_correction": True}),
    ("int8", {"activation_bits": 4, "calibrator": "mse"}),
    ("int4-weights", {"rounding": "gptq", "symmetric": False, "bias_correction": True}),
]


class Kinds(nn.Module):
    """One layer of each kind that takes integers: embedding of three groups, linears of rank 3 and 2, convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(60, 96)
        self.wide = nn.Linear(96, 40)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.flat = nn.Linear(4, 3, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = torch.relu(self.wide(self.embed(input_ids))) * attention_mask[..., None]
        return self.flat(self.conv(hidden[:, None]).mean(dim=(2, 3)))


LAYERS = {"embed": nn.Embedding, "wide": nn.Linear, "conv": nn.Conv2d, "flat": nn.Linear}


def same_values(found: NDArray, expected: Tensor) -> None:
    """Equal, but that one value stands for all where the file says it once or in every row."""
    flat = found.reshape(-1) if found.size == expected.numel() else np.unique(found)
    np.testing.assert_array_equal(flat, expected.numpy().reshape(-1))


@pytest.mark.parametrize(("precision", "settings"), SETTINGS, ids=str)
def test_the_file_holds_the_simulated_integers_and_computes_the_same(
    export: Callable[..., Exported], precision: str, settings: dict[str, object]
) -> None:
    """Every precision, bit-width, granularity and symmetry, on every kind of layer that has it."""
    names = [name for name, kind in LAYERS.items() if precision in LEGAL[kind]]
    if "rounding" in settings or "bias_correction" in settings:
        names.remove("embed") if "embed" in names else None
    made = export(task_of(Kinds()), quantized(precision, *names, **settings))
    arrays, four = made.arrays(), precision == "int4-weights"
    assert sorted(made.codes) == sorted(names)
    for name, codes in made.codes.items():
        values = codes.values.numpy()
        if precision == "fp16":
            np.testing.assert_array_equal(arrays[f"{name}.weight_f16"], values)
            continue
        found = unpack(arrays[f"{name}.weight_q4"], values.shape[1]) if four else arrays[f"{name}.weight_q"]
        np.testing.assert_array_equal(found, values.T if name in ("wide", "flat") and not four else values)
        same_values(arrays[f"{name}.weight_scale"], codes.scales)
        zeros = arrays.get(f"{name}.weight_zero")
        if codes.zeros is None:
            assert zeros is None or not zeros.any()
        elif four and name != "embed":
            same_values(unpack(zeros.reshape(len(values), -1), codes.zeros.shape[1]), codes.zeros)
        else:
            same_values(zeros, codes.zeros)
    assert made.deviation(made.task.test.batch(range(10))[0]) < 0.03


@pytest.mark.skipif("openvino" not in installed_runtimes(), reason="OpenVINO is not installed")
@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        ("fp16", {}),
        ("int8", {"activation_bits": 4}),
        ("int8", {"granularity": "tensor"}),
        *((precision, {"symmetric": symmetric, "weight_bits": 4})
          for precision in ("int8", "int8-dynamic", "int8-weights", "int4-weights") for symmetric in (True, False)),
    ],
    ids=str,
)  # fmt: skip
def test_openvino_computes_the_same_file(
    export: Callable[..., Exported], precision: str, settings: dict[str, object]
) -> None:
    names = [name for name, kind in LAYERS.items() if precision in LEGAL[kind]]
    made = export(task_of(Kinds()), quantized(precision, *names, **settings), "openvino")
    assert made.deviation(made.task.test.batch(range(10))[0], "openvino") < 0.03


def test_four_bit_activations_take_sixteen_values_on_the_way_in(export: Callable[..., Exported]) -> None:
    made = export(task_of(mlp()), quantized("int8", "first", activation_bits=4))
    (output,) = (node.output[0] for node in made.graph.node if node.op_type == "QuantizeLinear")
    model = onnx.load(made.path)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    value = 5 * torch.randn(400, 16)
    _logits, codes = session.run(None, {"x": value.numpy()})
    steps = made.codes["first"].input
    expected = torch.clamp(torch.round(value / steps.scale) + steps.zero, 0, 15)
    np.testing.assert_array_equal(codes, expected.numpy())
    assert set(np.unique(codes)) == set(range(16))


def test_low_rank_embeddings_take_integers(export: Callable[..., Exported]) -> None:
    model = bert()
    name = "bert.embeddings.word_embeddings"
    model.set_submodule(name, nn.Sequential(nn.Embedding(60, 32), nn.Linear(32, 32, bias=False)))
    for precision, held in (("int8-weights", 1), ("int4-weights", 2), ("fp16", 2)):
        made = export(task_of(model), quantized(precision, name))
        assert list(made.codes) == [f"{name}.0", f"{name}.1"][:held]
        assert made.deviation(made.task.test.batch(range(10))[0]) < 0.02


def test_smoothing_without_a_norm_is_one_multiplication(export: Callable[..., Exported]) -> None:
    plain = Counter(export(task_of(mlp()), quantized("int8", "first")).operators())
    smooth = Counter(export(task_of(mlp()), quantized("int8", "first", smooth=0.5)).operators())
    assert smooth - plain == Counter(["Mul", "Constant"])
