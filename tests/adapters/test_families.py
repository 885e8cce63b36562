"""Each family through what comes after removal: training, generating, saving, a fresh process, ONNX Runtime."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from autocompress.compressing.shape import shape
from autocompress.export.export import float_graph
from autocompress.layers import LayerTable
from autocompress.pipeline import save_weights
from autocompress.plan import Plan, Prune
from autocompress.tasks.task import Task
from tests.tiny import ALL_FAMILIES, DECODERS, Chooser, _one_thread, any_task, run, table_of  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Shaped:
    """A model of one family without the first block, one attention, one feed-forward part, and half of all else."""

    task: Task
    table: LayerTable
    plan: Plan
    model: nn.Module

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.task.test.batch(range(6))[0]


@cache
def shaped(family: str) -> Shaped:
    task = any_task(family, layers=4)
    table = table_of(task)
    blocks = table.blocks
    plan = {blocks[0]: Prune(0), f"{blocks[1]}/attention": Prune(0), f"{blocks[2]}/feed_forward": Prune(0)}
    for group in table.groups:
        heads, neurons = group.block in blocks[2:], group.block in (blocks[1], blocks[3])
        if group.kind == "hidden" or (group.kind == "heads" and heads) or (group.kind == "neurons" and neurons):
            plan[group.name] = Prune(group.size * 2 // 3)
    made = Plan(plan)
    return Shaped(task, table, made, shape(task.model, made, table, Chooser(task)).eval())


@pytest.mark.parametrize("family", [*ALL_FAMILIES, "mistral", "qwen2"])
def test_it_learns(family: str) -> None:
    """A few steps on one batch lower the loss."""
    it = shaped(family)
    model, (inputs, targets) = copy.deepcopy(it.model), it.task.train.batch(range(8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = it.task.loss(model(**inputs).logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def generated(model: nn.Module, ids: Tensor, mask: Tensor, cached: bool) -> tuple[Tensor, Tensor]:
    """Greedy tokens ``(batch, new)`` and their logits ``(new, batch, vocabulary)``."""
    result = model.generate(
        ids, attention_mask=mask, min_new_tokens=6, max_new_tokens=6, do_sample=False, use_cache=cached,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return result.sequences, torch.stack(result.logits)


def gone(table: LayerTable, what: str) -> Plan:
    blocks = table.blocks
    names = {
        "nothing": (),
        "first block": (blocks[0],),
        "first attention": (f"{blocks[0]}/attention",),
        "two attentions": (f"{blocks[0]}/attention", f"{blocks[2]}/attention"),
        "all attentions": tuple(f"{block}/attention" for block in blocks),
    }[what]
    return Plan(dict.fromkeys(names, Prune(0)))


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("what", ["nothing", "first block", "first attention", "two attentions", "all attentions"])
def test_generating_with_a_cache_is_generating_without(family: str, what: str) -> None:
    """One prompt is padded on the left, so that a mask of the wrong length would show."""
    task = any_task(family, layers=3)
    table = table_of(task)
    model = shape(task.model, gone(table, what), table, Chooser(task)).eval()
    ids = torch.tensor([[0, 0, 7, 8, 9], [3, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    tokens, logits = generated(model, ids, mask, cached=True)
    same_tokens, same_logits = generated(model, ids, mask, cached=False)
    torch.testing.assert_close(logits, same_logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(tokens, same_tokens)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("what", ["first block", "first attention"])
def test_a_text_continued_from_the_cache_is_the_whole_text(family: str, what: str) -> None:
    """Positions and masks follow from the length that the cache's first entry reports."""
    task = any_task(family, layers=3)
    table = table_of(task)
    model = shape(task.model, gone(table, what), table, Chooser(task)).eval()
    ids = torch.randint(2, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache_of_start = model(input_ids=ids[:, :5], use_cache=True).past_key_values
        rest = model(input_ids=ids[:, 5:], past_key_values=cache_of_start).logits
        torch.testing.assert_close(rest, model(input_ids=ids).logits[:, 5:], rtol=1e-4, atol=1e-5)


RELOAD = """
import json, sys
from pathlib import Path
import safetensors.torch, torch
from autocompress.compressing.shape import restore
from autocompress.layers import LayerTable
from autocompress.plan import plan_from_json
from tests.tiny import build_any, run
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    table = LayerTable.from_json(json.loads((folder / "layers.json").read_text()))
    plan = plan_from_json(json.loads((folder / "plan.json").read_text()), table=table)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    model = restore(build_any(folder.name, layers=4), plan, table, weights)
    logits = run(model, safetensors.torch.load_file(folder / "inputs.safetensors"))
    safetensors.torch.save_file({"logits": logits.clone()}, folder / "outputs.safetensors")
"""


def test_a_fresh_process_reloads_the_very_same_models(tmp_path: Path) -> None:
    folders = {family: tmp_path / family for family in ALL_FAMILIES}
    for family, folder in folders.items():
        it = shaped(family)
        folder.mkdir()
        save_weights(it.model, folder / "weights.safetensors")
        (folder / "layers.json").write_text(json.dumps(it.table.to_json()))
        (folder / "plan.json").write_text(json.dumps(it.plan.to_json()))
        safetensors.torch.save_file(it.inputs, folder / "inputs.safetensors")
    command = [sys.executable, "-c", RELOAD, *map(str, folders.values())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for family, folder in folders.items():
        logits = safetensors.torch.load_file(folder / "outputs.safetensors")["logits"]
        assert torch.equal(logits, run(shaped(family).model, shaped(family).inputs)), family


@pytest.mark.parametrize("family", [*ALL_FAMILIES, "qwen2"])
def test_the_exported_graph_computes_the_same(family: str) -> None:
    it = shaped(family)
    graph = float_graph(it.model, it.task)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    for rows in (range(6), [0]):
        inputs = it.task.test.batch(rows)[0]
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        np.testing.assert_allclose(found, run(it.model, inputs).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_traced_decoder_keeps_no_cache(family: str) -> None:
    it = shaped(family)
    without = copy.deepcopy(it.model)
    without.config.use_cache = False
    operators = [[node.op_type for node in float_graph(model, it.task).graph.node] for model in (it.model, without)]
    assert operators[0] == operators[1]
    assert it.model.config.use_cache  # the model itself still generates with one
