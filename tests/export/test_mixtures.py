"""Oracle: the torch twin, for precisions drawn by chance over the layers; and torch's own export, for none at all."""

from __future__ import annotations

import copy
import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from autocompress.compressing.quantize import quantize, simulate
from autocompress.export import export_model
from autocompress.export.export import codes_for
from autocompress.export.fresh import relative_distance
from autocompress.export.products import exact
from autocompress.export.tracing import OPSET
from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.runtimes import installed_runtimes, open_session
from autocompress.tasks.task import Task, logits_of
from autocompress.weights import untie
from tests.export.test_kernels import task_called
from tests.tiny import claimed, run, table_of

RUNTIMES = [name for name in installed_runtimes() if name in ("onnxruntime", "openvino")]


def drawn(task: Task, seed: int) -> Plan:
    """Every layer at one of its precisions, fp32 among them."""
    draw = np.random.default_rng(seed)
    chosen = {layer.name: draw.choice(claimed(layer)) for layer in table_of(task).layers}
    return Plan(
        layers={name: LayerPlan(quantize=Quantize(str(p))) for name, p in chosen.items() if p != "fp32"}, seed=seed
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("model", ["bert", "vit", "gpt2", "llama", "resnet"])
def test_any_mixture_agrees_in_every_runtime(model: str, seed: int, tmp_path: Path) -> None:
    task = task_called(model)
    plan = exact(drawn(task, seed), "onnxruntime")
    untie(task.model, plan.layers)  # as `shape` does
    made = quantize(task.model, plan, table_of(task), task.calibration())
    assert len({codes.precision for codes in made.codes.values()}) >= 2
    unseen = task.test.batch(range(6))[0]
    for runtime in RUNTIMES:
        path = tmp_path / f"{runtime}.onnx"
        export_model(made.model, made.codes, task, path, tmp_path, "f", runtime)
        expected = run(simulate(made.model, codes_for(made.codes, runtime)), unseen).numpy()
        found = open_session(path, runtime, 1).run({name: value.numpy() for name, value in unseen.items()})[0]
        assert relative_distance(found, expected) < 0.03


@pytest.mark.parametrize("model", ["bert", "vit", "llama", "resnet"])
def test_dense_after_a_round_trip_is_what_torch_exports(model: str, tmp_path: Path) -> None:
    """The same operators on the same weights: so it takes the same time."""
    task = task_called(model)
    export_model(task.model, {}, task, tmp_path / "model.onnx", tmp_path, "f", "onnxruntime")
    ours = onnx.load(tmp_path / "model.onnx")
    theirs = onnx.load_model_from_string(exported_by_torch(task))
    assert operators(ours) == operators(theirs)
    assert weights(ours) == weights(theirs)


def exported_by_torch(task: Task) -> bytes:
    """The untouched model, with transformers' plain attention and without a cache, through torch.onnx.export alone."""
    names, inputs = task.input_names, task.trace_inputs()

    class Plain(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return logits_of(self.model(**dict(zip(names, values, strict=True))))

    model = copy.deepcopy(task.model)
    if hasattr(model, "config"):
        model.set_attn_implementation("eager")
        model.config.use_cache = False
    axes = {name: {0: "batch", **task.dynamic_axes.get(name, {})} for name in names}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(model).eval(), tuple(inputs.values()), buffer, input_names=list(names), output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}}, opset_version=OPSET, do_constant_folding=False, dynamo=False,
        )  # fmt: skip
    return buffer.getvalue()


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {item.name: numpy_helper.to_array(item).tobytes() for item in model.graph.initializer}
