"""Oracles: the torch model that the file was held against, the file itself, the bits of the integers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from autocompress.errors import ConfigError, ExportError, ModelError
from autocompress.export.folder import INTEGERS, WEIGHTS, check_folder, from_pretrained, read_model, write_folder
from autocompress.export.fresh import Graded
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, Quantize
from autocompress.tasks.task import Task
from tests.compressing.test_quantize import NormCnn
from tests.export.conftest import Exported, keep_candidate
from tests.tiny import any_task, bert, claimed, quantized, run, table_of, task_of, tensors

MODELS = ("bert", "vit", "gpt2", "llama")


def mixed(task: Task) -> Plan:
    """Half of one block's heads and neurons, one factorized layer, and all precisions in turn."""
    table = table_of(task)
    groups = {
        g.name: Prune(keep=g.size // 2) for g in table.groups if g.kind in ("heads", "neurons") and ".0." in g.name
    }
    layers = {}
    for number, layer in enumerate(table.layers):
        precisions = claimed(layer)
        precision = precisions[(number + 1) % len(precisions)]
        settings = None if precision == "fp32" else Quantize(precision)
        rank = Factorize(4) if layer.kind == "linear" and number == len(table.layers) - 2 else None
        layers[layer.name] = LayerPlan(quantize=settings, factorize=rank)
    return Plan(groups, layers)


def kept(task: Task, plan: Plan, root: Path) -> tuple[Path, Graded, Exported]:
    graded, exported = keep_candidate(task, plan, root / "run")
    write_folder(graded.file.parent, graded.run, root / "out")
    return root / "out", graded, exported


def unseen(task: Task) -> dict[str, Tensor]:
    return task.test.batch(range(10))[0]


@pytest.mark.parametrize("family", MODELS)
def test_the_model_computes_what_the_file_was_held_against(family: str, tmp_path: Path) -> None:
    task = any_task(family)
    folder, _graded, exported = kept(task, mixed(task), tmp_path)
    found = run(from_pretrained(folder), unseen(task)).numpy()
    assert np.array_equal(found, exported.twin(unseen(task)))
    assert len({made.precision for made in exported.codes.values()}) >= 3
    assert sum(p.numel() for p in from_pretrained(folder).parameters()) < sum(
        p.numel() for p in task.model.parameters()
    )


def test_a_fresh_process_gives_what_the_file_gives(tmp_path: Path) -> None:
    task = any_task("bert")
    folder, graded, _exported = kept(task, mixed(task), tmp_path)
    assert 0 < check_folder(folder, graded.inputs, graded.expected, graded.most) < 0.03


def test_a_plan_without_integers_is_the_float_model(tmp_path: Path) -> None:
    task = any_task("gpt2")
    folder, graded, exported = kept(task, Plan(), tmp_path)
    assert not (graded.file.parent / INTEGERS).exists()
    assert torch.equal(run(from_pretrained(folder), unseen(task)), run(exported.model, unseen(task)))
    model = from_pretrained(folder)
    assert model.lm_head.weight is model.transformer.wte.weight  # stored once, shared again


@pytest.mark.parametrize("precision", ["int8", "int4-weights", "fp16"])
def test_the_file_holds_the_graded_integers_and_no_floats_beside_them(precision: str, tmp_path: Path) -> None:
    task = task_of(bert())
    names = [name for name, module in task.model.named_modules() if isinstance(module, nn.Linear)]
    plan = quantized(precision, *names, symmetric=precision != "int4-weights")
    folder, _graded, exported = kept(task, plan, tmp_path)
    codes = read_model(folder).codes
    for name, made in exported.codes.items():
        assert torch.equal(codes[name].values, made.values)
        assert torch.equal(codes[name].scales, made.scales)
        assert (codes[name].zeros is None) == (made.zeros is None)
        assert (codes[name].input, codes[name].output) == (made.input, made.output)
    with safe_open(folder / WEIGHTS, "pt") as stored:
        assert not {f"{name}.weight" for name in names} & set(stored.keys())
    floats = sum(task.model.get_submodule(name).weight.numel() * 4 for name in names)
    share = {"int8": 0.35, "int4-weights": 0.25, "fp16": 0.55}[precision]
    saved = os.path.getsize(tmp_path / "run" / "artifacts" / plan.fingerprint / WEIGHTS) - os.path.getsize(
        folder / WEIGHTS
    )
    assert saved > (1 - share) * floats - 10_000


@pytest.mark.parametrize("settings", [{"smooth": 0.5}, {"bias_correction": True}], ids=str)
def test_floats_that_rounding_changed_come_along(settings: dict[str, object], tmp_path: Path) -> None:
    task = any_task("bert")
    names = [
        f"bert.encoder.layer.0.{name}" for name in ("attention.self.query", "output.dense")
    ]  # behind a norm or not
    folder, _graded, exported = kept(task, quantized("int8", *names, **settings), tmp_path)
    assert exported.model is not task.model
    assert np.array_equal(run(from_pretrained(folder), unseen(task)).numpy(), exported.twin(unseen(task)))


def norms() -> Task:
    torch.manual_seed(0)
    pixels = tensors("pixel_values", (1, 8, 8), 24, 0)
    return Task("norms", NormCnn().eval(), pixels, pixels, pixels)


def test_a_model_of_ones_own_with_folded_norms(tmp_path: Path) -> None:
    task = norms()
    folder, _graded, exported = kept(task, quantized("int8", "first", "second"), tmp_path)
    model = from_pretrained(folder, make_model=NormCnn)
    assert np.array_equal(run(model, unseen(task)).numpy(), exported.twin(unseen(task)))


def test_a_model_of_ones_own_needs_its_maker(tmp_path: Path) -> None:
    folder, graded, _exported = kept(norms(), quantized("int8", "first"), tmp_path)
    with pytest.raises(ModelError, match=r"out: holds no config\.json.*; give make_model, a function that returns"):
        from_pretrained(folder)
    with pytest.raises(ExportError, match="format transformers needs a model of transformers"):
        check_folder(folder, graded.inputs, graded.expected, graded.most)


def test_an_architecture_that_transformers_lacks_is_named(tmp_path: Path) -> None:
    task = any_task("bert")
    folder, _graded, _exported = kept(task, Plan(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MyBert"]}))
    with pytest.raises(ModelError, match="transformers has no class 'MyBert'; give make_model"):
        from_pretrained(folder)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder, _graded, _exported = kept(any_task("bert"), Plan(), tmp_path)
    with pytest.raises(ModelError, match=r"weights\.safetensors: does not fit BertForSequenceClassification"):
        from_pretrained(folder, make_model=lambda: bert(neurons=32))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no compressed torch model \(it holds no plan\.json\)"):
        from_pretrained(tmp_path)


def test_weights_that_were_not_kept_are_told_of(tmp_path: Path) -> None:
    graded, _exported = keep_candidate(any_task("bert"), Plan(), tmp_path / "run")
    (graded.file.parent / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match="is not there: float weights are kept of models that no other beats"):
        write_folder(graded.file.parent, graded.run, tmp_path / "out")


def test_other_integers_are_seen_in_the_fresh_process(tmp_path: Path) -> None:
    task = any_task("bert")
    folder, graded, _exported = kept(task, Plan(), tmp_path)
    with pytest.raises(ExportError, match=r"in a fresh process its outputs lie \d"):
        check_folder(folder, graded.inputs, graded.expected + 1, graded.most)
