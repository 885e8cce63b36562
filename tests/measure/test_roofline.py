"""Predictions. Oracles: closed forms of single layers, the chip's own ratios, and the written file of a precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from autocompress.compressing.quantize import quantize
from autocompress.errors import MeasureError, ProfileError
from autocompress.export.decoder import decoder_graph
from autocompress.export.export import float_graph
from autocompress.export.integers import insert_codes
from autocompress.hardware import HardwareProfile
from autocompress.measure.chips import kernels
from autocompress.measure.graphs import Size
from autocompress.measure.latency import Contestant, Setting
from autocompress.measure.queries import write_queries
from autocompress.measure.roofline import Roofline, RooflineBench
from autocompress.measure.steps import read_work
from autocompress.plan import Plan
from tests.measure.test_graphs import save
from tests.tiny import any_task, mlp, profile_of, quantized, table_of, task_of

M, K, N = 8, 32, 16
PEAKS = {"fp32": 1e9, "fp16": 2e9, "int8": 5e9}
ENDLESS = 1e30


def profile(workload: dict[str, Any] | None = None, **changes: Any) -> HardwareProfile:
    """An analytic profile of a chip without overheads."""
    chip = {"name": "Chip", "source": "by hand", "peaks": PEAKS, "bandwidth": 1e9}
    chip |= {"kernel_overhead_s": 0.0, "query_overhead_s": 0.0, **changes}
    made = {"name": "made", "latencies": "analytic", "threads": 1, "chip": chip, "workload": workload or {}}
    return HardwareProfile.model_validate(made)


@pytest.fixture
def linear(tmp_path) -> Path:
    """One linear layer ``fc`` with a bias, from ``(M, K)`` to ``(M, N)``."""
    node = helper.make_node("Gemm", ["x", "model.fc.weight", "model.fc.bias"], ["y"])
    constants = {"model.fc.weight": np.zeros((K, N), np.float32), "model.fc.bias": np.zeros(N, np.float32)}
    return save(tmp_path / "linear.onnx", [node], constants, [M, K])


def written(task, path: Path, plan: Plan | None = None) -> Path:
    codes = quantize(task.source, plan, table_of(task), task.calibration()).codes if plan else {}
    onnx.save_model(insert_codes(float_graph(task.source, task), codes), path)
    return path


def test_a_linear_that_computes_for_long(linear):
    bound = profile(bandwidth=ENDLESS, efficiency={"fp32": 0.5}, kernel_overhead_s=3.0, query_overhead_s=4.0)
    assert Roofline(bound).predict(linear) == pytest.approx(2 * M * K * N / (1e9 * 0.5) + 3 + 4)


def test_a_linear_that_waits_for_memory(linear):
    bound = profile(peaks={"fp32": ENDLESS}, bandwidth=1e6, bandwidth_efficiency=0.5)
    assert Roofline(bound).predict(linear) == pytest.approx(4 * (M * K + K * N + N + M * N) / 5e5)


def test_the_slower_of_the_two_counts(linear):
    compute = Roofline(profile(bandwidth=ENDLESS)).predict(linear)
    memory = Roofline(profile(peaks={"fp32": ENDLESS})).predict(linear)
    assert Roofline(profile()).predict(linear) == max(compute, memory)


def test_precisions_are_as_fast_as_the_chip_says(linear):
    roofline = Roofline(profile(bandwidth=ENDLESS))
    dense = roofline.predict(linear)
    for precision, peak in (("fp16", "fp16"), ("int8", "int8"), ("int4-weights", "int8"), ("int8-weights", "fp32")):
        assert dense / roofline.predict(linear, {"fc": precision}) == pytest.approx(PEAKS[peak] / PEAKS["fp32"])


def test_a_chip_says_what_it_computes_in_and_falls_back_to_floats(linear):
    halves = Roofline(profile(bandwidth=ENDLESS, arithmetic={"int4-weights": "fp16"}))
    assert halves.predict(linear) / halves.predict(linear, {"fc": "int4-weights"}) == pytest.approx(2)
    floats = Roofline(profile(bandwidth=ENDLESS, peaks={"fp32": 1e9}))
    assert floats.predict(linear, {"fc": "int8"}) == floats.predict(linear)


def test_four_bit_weights_move_fewer_bytes(linear):
    roofline = Roofline(profile(peaks={"fp32": ENDLESS}))
    moved = 4 * (M * K + N + M * N) + (4 + 1) / 8 * K * N
    assert roofline.predict(linear, {"fc": "int4-weights"}) == pytest.approx(moved / 1e9)


def test_bit_serial_time_goes_with_the_bits(linear):
    roofline = Roofline(profile(bit_serial=True, peaks={"int1": 1e9}, bandwidth=ENDLESS, float_bits=16))
    bits = {"fp32": 16 * 16, "int8": 8 * 8, "int4-weights": 4 * 8, "int8-weights": 8 * 16}
    for precision, product in bits.items():
        assert roofline.predict(linear, {"fc": precision}) == pytest.approx(2 * M * K * N * product / 1e9)


def test_bit_serial_memory_holds_fixed_point(linear):
    roofline = Roofline(profile(bit_serial=True, peaks={"int1": ENDLESS}, float_bits=16))
    assert roofline.predict(linear) == pytest.approx((2 * (M * K + K * N + M * N) + 4 * N) / 1e9)


def test_layers_and_overhead_are_the_whole(tmp_path):
    path = written(any_task("bert"), tmp_path / "bert.onnx")
    found = Roofline(profile({"sequence_length": 9}, kernel_overhead_s=1e-6, query_overhead_s=1e-5)).forecast(path)
    assert sum(found.layers.values()) + found.overhead_s == pytest.approx(found.seconds)
    assert found.overhead_s == 1e-5
    assert {"bert.encoder.layer.1.attention.self.value", "classifier", ""} <= set(found.layers)


@pytest.mark.parametrize("precision", ["int8", "fp16", "int4-weights"])
@pytest.mark.parametrize("family", ["mlp", "bert"])
def test_a_precision_asked_for_costs_what_its_file_costs(family, precision, tmp_path):
    task = task_of(mlp(64)) if family == "mlp" else any_task(family)
    names = (
        ["first", "second"]
        if family == "mlp"
        else [f"bert.encoder.layer.0.{part}.dense" for part in ("intermediate", "output")]
    )
    if precision == "int4-weights" and family == "mlp":
        names = ["second"]  # the first has half a group of inputs, which the file fills up
    roofline = Roofline(profile({"sequence_length": 9}, kernel_overhead_s=1e-7))
    dense = written(task, tmp_path / "dense.onnx")
    asked = roofline.predict(dense, dict.fromkeys(names, precision))
    assert asked == pytest.approx(roofline.predict(written(task, tmp_path / "q.onnx", quantized(precision, *names))))
    assert asked != pytest.approx(roofline.predict(dense))


def test_a_range_that_must_be_found_is_a_kernel_more(tmp_path):
    dense = read_work(written(task_of(mlp()), tmp_path / "dense.onnx"), Size())
    chip = profile().chip
    static = kernels(dense, chip, {"first": "int8", "second": "int8"})
    dynamic = kernels(dense, chip, {"first": "int8-dynamic", "second": "int8-dynamic"})
    assert [k.operator for k in static] == ["QuantizeLinear", "Gemm", "Gemm"]
    assert len(dynamic) == len(static) + 1


def test_energy_of_watts_and_of_joules(linear):
    seconds = 2 * M * K * N / 1e9
    made = {"bandwidth": ENDLESS, "query_overhead_s": 1.0}
    watts = Roofline(profile(**made, power={"idle_w": 2, "busy_w": 10}))
    assert watts.energy(linear) == pytest.approx(2 * 1.0 + 10 * seconds)
    prices = {"op_j": dict.fromkeys(PEAKS, 3.0), "byte_j": 5.0}
    moved = 4 * (M * K + K * N + N + M * N)
    assert Roofline(profile(**made, power=prices)).energy(linear) == pytest.approx(3 * 2 * M * K * N + 5 * moved)
    assert Roofline(profile()).energy(linear) is None


def test_a_layer_that_is_not_there_or_not_dense_is_refused(linear, tmp_path):
    with pytest.raises(MeasureError, match="the file has no layer 'fd'; did you mean 'fc'"):
        Roofline(profile()).predict(linear, {"fd": "int8"})
    rounded = written(task_of(mlp()), tmp_path / "q.onnx", quantized("int8", "first"))
    with pytest.raises(MeasureError, match="layer 'first' is int8 in the file: give precisions for the dense one"):
        Roofline(profile()).predict(rounded, {"first": "fp16"})


def test_a_measured_profile_and_a_lost_file_are_refused(tmp_path):
    with pytest.raises(ProfileError, match="hardware profile 'tiny' has latencies: measured, and only an analytic one"):
        Roofline(profile_of())
    with pytest.raises(MeasureError, match=r"lost\.onnx: cannot be read"):
        Roofline(profile()).predict(tmp_path / "lost.onnx")


def test_predictions_are_means_over_the_queries(tmp_path):
    task = any_task("bert")
    path = written(task, tmp_path / "bert.onnx")
    lengths = (5, 9, 9)
    inputs = [{n: np.ones((1, length), np.int64) for n in ("input_ids", "attention_mask")} for length in lengths]
    write_queries(tmp_path / "inputs.npz", inputs)
    each = [Roofline(profile({"sequence_length": length})).predict(path) for length in lengths]
    assert Roofline(profile(), tmp_path / "inputs.npz").predict(path) == pytest.approx(np.mean(each))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    task = any_task("gpt2")
    path = tmp_path_factory.mktemp("decoder") / "gpt2.onnx"
    onnx.save_model(decoder_graph(task.source, task), path)
    return path


def test_a_decoder_reads_its_weights_for_every_token(decoder):
    load = {"prompt_length": 6, "new_tokens": 4}
    roofline = Roofline(profile(load, peaks={"fp32": ENDLESS}, query_overhead_s=1e-6))
    found = roofline.forecast(decoder)
    assert found.seconds == pytest.approx(found.first_token_s + 4 * found.per_token_s)
    assert found.overhead_s == pytest.approx(5e-6)
    assert sum(found.layers.values()) + found.overhead_s == pytest.approx(found.seconds)
    name = "transformer.h.0.mlp.c_fc"
    tokens = 6 + 4
    assert found.layers[name] == pytest.approx(4 * (5 * (32 * 64 + 64) + tokens * (32 + 64)) / 1e9)


def test_small_weights_pay_in_decoding(decoder):
    load = {"prompt_length": 6, "new_tokens": 4}
    roofline = Roofline(profile(load, peaks={"fp32": ENDLESS, "int8": ENDLESS}))
    names = [f"transformer.h.{i}.mlp.{part}" for i in (0, 1) for part in ("c_fc", "c_proj")]
    four, eight = (
        roofline.forecast(decoder, dict.fromkeys(names, precision)).per_token_s
        for precision in ("int4-weights", "int8-weights")
    )
    assert four < eight < roofline.forecast(decoder).per_token_s


def test_a_file_without_a_past_cannot_decode(linear):
    with pytest.raises(MeasureError, match=r"linear\.onnx: reads no past, so single tokens cannot be predicted"):
        Roofline(profile({"prompt_length": 6, "new_tokens": 4})).predict(linear)


@pytest.fixture
def bench(tmp_path) -> RooflineBench:
    task = task_of(mlp())
    write_queries(tmp_path / "inputs.npz", [{"x": np.zeros((4, 16), np.float32)}])
    watts = {"busy_w": 10.0}
    return RooflineBench(profile(power=watts), tmp_path / "inputs.npz", written(task, tmp_path / "dense.onnx"))


def test_a_bench_predicts_and_says_so(bench, tmp_path):
    small = written(task_of(mlp(8)), tmp_path / "small.onnx")
    with bench:
        found = bench.measure(small)
    expected = bench.roofline.predict(small) / bench.roofline.predict(bench.dense.path)
    ratios = (found.ratio, found.ratio_low, found.ratio_high, found.ratio_best_dense)
    assert ratios == (expected,) * 4
    assert expected < 1
    assert (found.source, found.energy_source, found.blocks, found.queries) == ("predicted", "predicted", 0, 0)
    assert found.energy_j == pytest.approx(10 * found.latency_s)
    assert found.warnings == ("predicted from the published figures of Chip, not measured",)
    assert bench.measure(bench.dense.path, "report").ratio == 1
    assert bench.table_ratio(small, bench.inputs) == expected


def test_a_bench_races_only_in_its_own_setting(bench):
    other = Contestant("other", bench.dense.path, Setting("onnxruntime", 2))
    with pytest.raises(MeasureError, match="'made' predicts for onnxruntime, 1 thread alone"):
        bench.load(other)
    rounds = bench.race([bench.dense, replace(bench.dense, name="again")], bench.profile.timing)
    assert rounds.ratios("again", "dense") == [1.0]
    assert rounds.times("dense") == [bench.load(bench.dense)]
