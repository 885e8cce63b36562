"""Units as files of their own. Oracle: the torch unit, and the inputs that the whole model gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.compressing.quantize import simulate
from autocompress.errors import ExportError
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, Quantize
from autocompress.runtimes import open_session
from autocompress.survey import survey
from autocompress.tables.blocks import (
    Built,
    Call,
    build_for_timing,
    export_neighbours,
    export_unit,
    export_whole,
    free_axes,
    sides_of,
    timed_alike,
    traced_query,
    watch_calls,
)
from autocompress.tables.neighbours import NO_SIDES, Between, Side, Sides
from autocompress.tables.units import units_of
from autocompress.tasks.task import Task
from tests.tiny import CLASSES, any_task, bert, cnn, mlp, quantized, run, table_of, task_of, tensors

BLOCK = "bert.encoder.layer.0"


def outputs(built: Built, task: Task, name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """First output of a unit's file, and what of the torch unit's own it stands for, on the query."""
    query = task.workload_inputs(1, None)
    call = watch_calls(built.model, [name], query)[name]
    other = watch_calls(built.model, [name], task.workload_inputs(2, None))[name]
    inputs = export_unit(built, name, call, free_axes(call, other), folder / "unit.onnx")
    with np.load(inputs) as stored:
        found = open_session(folder / "unit.onnx", "onnxruntime", 1).run(dict(stored))[0]
    seen: list[torch.Tensor] = []
    twin = simulate(built.model, built.codes)
    twin.get_submodule(name).register_forward_hook(
        lambda _module, _args, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    run_quietly(twin, traced_query(twin, query))
    return found, seen[0][..., :1].numpy()


def run_quietly(model: nn.Module, query: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        model(**query)


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2", "llama", "distilbert"])
def test_every_unit_of_a_dense_model_computes_what_torch_does(family: str, tmp_path: Path) -> None:
    task = any_task(family)
    table = table_of(task)
    built = build_for_timing(Plan(), task, table, "onnxruntime")
    for unit in units_of(table):
        found, expected = outputs(built, task, unit.name, tmp_path)
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=unit.name)


PLANS = {
    "heads": Plan({f"{BLOCK}.attention/heads": Prune(2)}),
    "neurons": Plan({f"{BLOCK}.intermediate.dense/neurons": Prune(16)}),
    "no-attention": Plan({f"{BLOCK}/attention": Prune(0)}),
    "rank": Plan(layers={f"{BLOCK}.output.dense": LayerPlan(Factorize(4), Quantize("int8"))}),
    "static": quantized("int8", f"{BLOCK}.output.dense", f"{BLOCK}.attention.self.query"),
    "dynamic": quantized("int8-dynamic", f"{BLOCK}.intermediate.dense"),
    "four-bit": quantized("int4-weights", f"{BLOCK}.intermediate.dense"),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_compressed_block_computes_what_torch_does(plan: Plan, tmp_path: Path) -> None:
    task = task_of(bert())
    built = build_for_timing(plan, task, table_of(task), "onnxruntime")
    found, expected = outputs(built, task, BLOCK, tmp_path)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_only_the_units_own_integers_are_in_its_file(tmp_path: Path) -> None:
    task = task_of(bert())
    plan = quantized("int8", f"{BLOCK}.output.dense", "bert.encoder.layer.1.output.dense")
    built = build_for_timing(plan, task, table_of(task), "onnxruntime")
    outputs(built, task, BLOCK, tmp_path)
    stored = {item.name for item in onnx.load(tmp_path / "unit.onnx").graph.initializer}
    assert "unit.output.dense.weight_q" in stored
    assert sum(name.endswith("weight_q") for name in stored) == 1


def test_a_layer_alone_takes_integers_too(tmp_path: Path) -> None:
    task = task_of(mlp())
    built = build_for_timing(quantized("int8", "first"), task, table_of(task), "onnxruntime")
    found, expected = outputs(built, task, "first", tmp_path)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_sizes_that_follow_the_query_stay_free_as_in_the_whole_file(tmp_path: Path) -> None:
    task = task_of(bert())
    built = build_for_timing(Plan(), task, table_of(task), "onnxruntime")
    outputs(built, task, BLOCK, tmp_path)
    sizes = onnx.load(tmp_path / "unit.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [bool(size.dim_param) for size in sizes] == [True, True, False]


def test_what_is_timed_keeps_its_shapes_and_loses_the_rest() -> None:
    plan = Plan(
        {f"{BLOCK}.attention/heads": Prune(2, "fisher")},
        {"classifier": LayerPlan(quantize=Quantize("int8", rounding="gptq", calibrator="mse", bias_correction=True))},
        seed=3,
    )
    assert timed_alike(plan) == Plan(
        {f"{BLOCK}.attention/heads": Prune(2, "magnitude", repair=False)},
        {"classifier": LayerPlan(quantize=Quantize("int8", calibrator="min-max"))},
    )


def test_a_whole_model_for_timing_is_the_model(tmp_path: Path) -> None:
    task = task_of(cnn())
    built = build_for_timing(Plan(), task, table_of(task), "onnxruntime")
    export_whole(built, task, tmp_path / "model.onnx")
    query = task.workload_inputs(1, None)
    found = open_session(tmp_path / "model.onnx", "onnxruntime", 1).run({k: v.numpy() for k, v in query.items()})[0]
    np.testing.assert_allclose(found, run(task.model, query).numpy(), atol=1e-5)


class Twice(nn.Module):
    """One linear that is called twice, and one in a list that is never called as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(16, 16)
        self.listed = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, CLASSES)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.listed[1](self.listed[0](self.shared(self.shared(x))))


def test_calls_are_counted_and_uncalled_modules_left_out() -> None:
    splits = {split: tensors("x", (16,), 8, i) for i, split in enumerate(("train", "validation", "test"))}
    task = Task("twice", Twice().eval(), **splits)
    query = task.workload_inputs(1, None)
    units = units_of(survey(task.source, query))
    assert [unit.name for unit in units] == ["shared", "listed"]
    calls = watch_calls(task.source, [unit.name for unit in units], query)
    assert calls.keys() == {"shared"}
    assert calls["shared"].times == 2


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x @ x.T).real


def test_a_unit_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(Untraceable())
    call = watch_calls(model, ["0"], {"input": torch.ones(2, 2)})["0"]
    with pytest.raises(ExportError, match="cannot export 0 alone"):
        export_unit(Built(model, {}), "0", call, free_axes(call, Call(call.leaves, call.spec, 1)), tmp_path / "u.onnx")


class Shortcut(nn.Module):
    """A block of two convolutions that values run around as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + x)


class Residual(nn.Module):
    """A stem, two blocks with shortcuts and a linear, on images ``(n, 1, 8, 8)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Shortcut(), Shortcut())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(pixel_values))).mean(dim=(2, 3)))


LAST = "blocks.1"
ROUNDED = quantized("int8", *(f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("one", "two")))


@pytest.fixture(scope="module")
def residual() -> Task:
    torch.manual_seed(5)
    splits = {
        split: tensors("pixel_values", (1, 8, 8), 8, i) for i, split in enumerate(("train", "validation", "test"))
    }
    return Task("residual", Residual().eval(), **splits)


def between(task: Task, plan: Plan, name: str, runtime: str, path: Path) -> tuple[Built, Sides]:
    """Write a unit between its neighbours."""
    query = task.workload_inputs(1, None)
    built = build_for_timing(plan, task, survey(task.source, query), runtime)
    call = watch_calls(built.model, [name], query)[name]
    other = watch_calls(built.model, [name], task.workload_inputs(2, None))[name]
    sides = sides_of(built, name, call, query)
    torch.manual_seed(6)
    export_unit(built, name, call, free_axes(call, other), path, sides)
    return built, sides


def test_feature_maps_come_from_neighbours_and_go_to_them(residual: Task, tmp_path: Path) -> None:
    maps = (1, 8, 8, 8)
    found = {name: between(residual, Plan(), name, "onnxruntime", tmp_path / "u.onnx")[1] for name in ("stem", LAST)}
    assert found == {"stem": (None, Side(maps)), LAST: (Side(maps), Side(maps))}
    assert between(residual, Plan(), "head", "onnxruntime", tmp_path / "u.onnx")[1] == NO_SIDES
    texts = [side.text for side in between(residual, ROUNDED, LAST, "onnxruntime", tmp_path / "u.onnx")[1] if side]
    assert texts == ["neighbours [1, 8, 8, 8] int8"] * 2


@pytest.mark.parametrize("plan", [Plan(), ROUNDED, quantized("int8", f"{LAST}.two")], ids=["fp32", "int8", "mixed"])
def test_a_unit_between_neighbours_computes_what_torch_does(plan: Plan, residual: Task, tmp_path: Path) -> None:
    path = tmp_path / "unit.onnx"
    built, sides = between(residual, plan, LAST, "onnxruntime", path)
    torch.manual_seed(6)
    around = Between(built.model.get_submodule(LAST), sides)
    codes = {f"unit{name.removeprefix(LAST)}": made for name, made in built.codes.items() if name.startswith(LAST)}
    twin = simulate(around, {**codes, **around.codes()})
    with np.load(path.with_suffix(".npz")) as stored:
        found = open_session(path, "onnxruntime", 1).run(dict(stored))[0]
        expected = run(twin, {"value": torch.tensor(stored["input_0"])}).numpy()
    assert found.shape == (1, 1, 8, 8)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_between_neighbours_values_run_around_a_block_as_in_the_whole_file(
    runtime: str, residual: Task, tmp_path: Path
) -> None:
    built, _sides = between(residual, ROUNDED, LAST, runtime, tmp_path / "unit.onnx")
    export_whole(built, residual, tmp_path / "whole.onnx")

    def readers_of_integers(path: Path) -> list[bool]:
        nodes = onnx.load(path).graph.node
        rounded = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
        last = [node for node in nodes if node.op_type == "Add"][-1]
        return [name in rounded for name in last.input]

    assert readers_of_integers(tmp_path / "unit.onnx") == readers_of_integers(tmp_path / "whole.onnx")


@pytest.mark.parametrize("side", [None, Side((1, 8, 4, 4))], ids=["nothing", "maps"])
def test_neighbours_with_nothing_between_them_run(side: Side | None, tmp_path: Path) -> None:
    with np.load(export_neighbours(side, tmp_path / "around.onnx")) as stored:
        found = open_session(tmp_path / "around.onnx", "onnxruntime", 1).run(dict(stored))[0]
        assert found.shape == stored["input_0"].shape
