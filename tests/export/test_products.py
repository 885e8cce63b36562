"""Oracle: arithmetic of whole numbers, and the torch twin of a file with the largest products that there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.compressing.quantize import quantize, simulate
from autocompress.export import export_model, products
from autocompress.export.export import to_arrays
from autocompress.export.products import NARROW, SHAPE, exact, exact_bits
from autocompress.plan import Factorize, LayerPlan, Plan, Quantize
from autocompress.runtimes import installed_runtimes, open_session
from autocompress.tasks.task import Examples, Task
from tests.tiny import table_of

RUNTIMES = [name for name in ("onnxruntime", "openvino", "torch") if name in installed_runtimes("cpu")]


def narrow(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setattr(products, "exact_bits", lambda *_args: bits)


def test_pairs_of_the_largest_products_fit_into_sixteen_bits_with_seven_and_not_with_eight() -> None:
    assert 2 * 255 * 2 ** (NARROW - 1) < 2**15 <= 2 * 255 * (2**7 - 1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_is_exact_or_cut_off_at_sixteen_bits_and_nothing_else(runtime: str) -> None:
    found = products._by_torch() if runtime == "torch" else products._by_file(runtime)
    right, cut = 255 * 127 * SHAPE[1], (2**15 - 1) * SHAPE[1] / 2
    assert np.allclose(found, right, rtol=1e-4) or np.allclose(found, cut, rtol=1e-4)
    assert exact_bits(runtime) == (8 if np.allclose(found, right, rtol=1e-3) else NARROW)


def test_only_eight_bit_kernels_on_processors_are_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, NARROW)
    plan = Plan(
        layers={
            "a": LayerPlan(quantize=Quantize("int8")),
            "b": LayerPlan(Factorize(2), Quantize("int8-dynamic")),
            "c": LayerPlan(quantize=Quantize("int8", weight_bits=4)),
            "d": LayerPlan(quantize=Quantize("int4-weights")),
            "e": LayerPlan(quantize=Quantize("int8-weights")),
            "f": LayerPlan(Factorize(2)),
        }
    )
    found = exact(plan, "onnxruntime")
    bits = {name: own.quantize and own.quantize.weight_bits for name, own in found.layers.items()}
    assert bits == {"a": 7, "b": 7, "c": 4, "d": None, "e": None, "f": None}
    assert found.layers["b"].factorize == plan.layers["b"].factorize
    narrow(monkeypatch, 8)
    assert exact(plan, "onnxruntime") is plan
    monkeypatch.undo()
    assert exact_bits("onnxruntime", "cuda") == 8


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_answers_what_its_twin_does_even_where_every_product_is_the_largest(
    runtime: str, tmp_path: Path
) -> None:
    """Without narrowing, a processor that cuts products off gives half of it."""
    model = nn.Sequential(nn.Linear(256, 32), nn.Flatten())
    nn.init.ones_(model[0].weight)
    split = Examples({"input": torch.ones(16, 8, 256)}, torch.zeros(16, dtype=torch.int64))
    task = Task("largest", model, split, split, split)
    table = table_of(task)
    plan = exact(Plan(layers={"0": LayerPlan(quantize=Quantize("int8"))}), runtime)
    made = quantize(model, plan, table, task.calibration())
    path = tmp_path / ("model.pt2" if runtime == "torch" else "model.onnx")
    export_model(made.model, made.codes, task, path, tmp_path, "", runtime)
    query = task.train.batch([0])[0]
    with torch.inference_mode():
        wanted = simulate(made.model, made.codes)(**query).numpy()
    found = open_session(path, runtime, 1).run(to_arrays(query))[0]
    assert np.allclose(found, wanted, rtol=1e-2)
