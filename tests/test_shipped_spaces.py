"""Every shipped space is searched on a model of its kind. Oracle: what its opening comment promises, told by hand.

Trainings are cut to a few steps, and latencies are predicted for a chip that nobody has, so that nothing is timed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import Tensor, nn

import autocompress
from autocompress.hardware import load_profile
from autocompress.layers import LayerTable
from autocompress.plan import Plan
from autocompress.rules import load_space
from autocompress.searching.probe import REACH
from autocompress.settings import shipped_folder, shipped_names
from autocompress.space import SearchSpace, build_space, default_space
from autocompress.tasks.task import Examples, Task
from tests.tiny import (
    CLASSES,
    VOCABULARY,
    _one_thread,  # noqa: F401  (a fixture)
    any_task,
    table_of,
    tensors,
)

#: So slow in arithmetic that nothing else counts, and every lighter precision pays.
CHIP = """
latencies: analytic
rounding: {heads: 1, neurons: 8, channels: 2, hidden: 8, rank: 4}
chip:
  name: a slow chip
  source: made up
  peaks: {fp32: 1.0e+6, fp16: 2.0e+6, int8: 4.0e+6}
  bandwidth: 1.0e+12
  kernel_overhead_s: 0
  query_overhead_s: 0
"""

SIZES = {"train": (24, 10), "validation": (12, 11), "test": (10, 12)}

RECOVERY = {"soft_weight", "temperature", "learning_rate", "steps"}


class Residual(nn.Module):
    """Three convolutions, two of them inside a shortcut, and a linear, on images ``(n, 1, 8, 8)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(i, 8, 3, padding=1, bias=False) for i in (1, 8, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        stream = torch.relu(self.norms[0](self.stem(pixel_values)))
        inner = torch.relu(self.norms[1](self.first(stream)))
        return self.head(torch.relu(stream + self.norms[2](self.second(inner))).mean(dim=(2, 3)))


class Bag(nn.Module):
    """Words that are looked up and averaged, on ids ``(n, 6)``: no adapter knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 64)
        self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.words(ids).mean(dim=1))))


def make_task(model: str) -> Task:
    if model not in ("residual", "bag"):
        return any_task(model)
    torch.manual_seed(8)
    if model == "residual":
        return Task(
            "tiny", Residual(), batch_size=8, **{n: tensors("pixel_values", (1, 8, 8), *s) for n, s in SIZES.items()}
        )
    splits = {}
    for name, (count, seed) in SIZES.items():
        ids = torch.randint(0, VOCABULARY, (count, 6), generator=torch.Generator().manual_seed(seed))
        splits[name] = Examples({"ids": ids}, ids[:, 0] % CLASSES)
    return Task("tiny", Bag(), batch_size=8, **splits)


@dataclass(frozen=True)
class Promise:
    """What a space does to a model.

    Attributes:
        chooses: kinds of its variables, those of the recovery left out.
        does: what candidates may be, see `traits`.
        seen: of these, what is tried first of all.
        recovers: whether the recovery is searched.
        strategy: in place of the space's own, where that comes to recoveries too late to be seen.
        trials: candidates that the test searches.
    """

    chooses: set[str]
    does: set[str]
    seen: set[str]
    recovers: bool = True
    strategy: Literal["joint"] | None = None
    trials: int = 5


#: What every space does to a model, by the names of both.
PROMISES = {
    ("transformer", "bert"): Promise(
        {"keep", "remove", "precision", "rank"},
        {"heads", "neurons", "block", "factorize", "quantize", "distill"},
        {"heads", "neurons", "quantize"},
    ),
    ("quick", "distilbert"): Promise(
        {"keep", "remove", "precision"},
        {"heads", "neurons", "block", "quantize", "distill"},
        {"heads", "neurons", "quantize"},
        trials=9,
    ),
    ("gpu", "vit"): Promise(
        {"keep", "remove", "precision"},
        {"heads", "neurons", "block", "quantize", "distill"},
        {"heads", "neurons", "quantize"},
    ),
    ("everything", "bert"): Promise(
        {"keep", "remove", "precision", "bits", "rank", "sparsity", "learn"},
        {"heads", "neurons", "hidden", "attention", "feed_forward", "block", "factorize", "quantize", "bits", "mask",
         "Gradual", "Cofi", "distill"},
        {"quantize"},
    ),
    ("decoder", "gpt2"): Promise(
        {"keep", "remove", "precision"},
        {"heads", "neurons", "block", "quantize", "distill"},
        {"heads", "neurons", "quantize"},
    ),
    ("decoder", "llama"): Promise(
        {"keep", "remove", "precision"},
        {"heads", "neurons", "block", "quantize", "distill"},
        {"heads", "neurons", "quantize"},
    ),
    ("cofi", "bert"): Promise({"precision", "learn"}, {"Cofi", "quantize"}, {"Cofi", "quantize"}, recovers=False),
    ("structure", "bert"): Promise({"keep", "remove"}, {"heads", "neurons", "block", "distill"}, {"heads", "neurons"}),
    ("structure", "residual"): Promise({"keep"}, {"channels", "distill"}, {"channels", "distill"}, strategy="joint"),
    ("cnn", "residual"): Promise(
        {"keep", "precision", "rank"}, {"channels", "factorize", "quantize", "distill"}, {"channels", "quantize"}
    ),
    ("distillation", "bert"): Promise(set(), {"heads", "neurons", "distill"}, {"heads", "neurons", "distill"}),
    ("distillation", "residual"): Promise(set(), {"channels", "distill"}, {"channels", "distill"}),
    ("low-rank", "bert"): Promise({"rank"}, {"factorize", "distill"}, {"factorize"}),
    ("low-rank", "residual"): Promise({"rank"}, {"factorize", "distill"}, {"factorize", "distill"}, strategy="joint"),
    ("generic", "bag"): Promise({"precision", "rank"}, {"factorize", "quantize", "distill"}, {"factorize", "quantize"}),
    ("bits", "bag"): Promise({"precision"}, {"quantize"}, {"quantize"}, recovers=False),
    ("bits", "residual"): Promise({"precision"}, {"quantize"}, {"quantize"}, recovers=False),
    ("mixed-precision", "bag"): Promise({"precision"}, {"quantize"}, {"quantize"}, recovers=False),
}  # fmt: skip


@dataclass(frozen=True)
class Searched:
    promise: Promise
    space: SearchSpace
    run: autocompress.Run


@pytest.fixture(scope="module", params=PROMISES.items(), ids=lambda item: "-".join(item[0]))
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A short search with the public call."""
    (space, model), promise = request.param
    folder = tmp_path_factory.mktemp(space)
    chip, rules = folder / "chip.yaml", shortened(space, folder)
    chip.write_text(CHIP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autocompress.launch.cores", lambda: 1)  # tiny matrices gain nothing from more
        run = autocompress.search(
            make_task(model),
            out=folder / "run",
            space=rules,
            hardware=chip,
            budget="1h",
            strategy=promise.strategy,
            max_trials=promise.trials,
        )
    return Searched(promise, build_space(load_space(rules), run.table, load_profile(chip)), run)


def shortened(name: str, folder: Path) -> Path:
    """The shipped space with next to no training."""
    data: dict[str, Any] = yaml.safe_load((shipped_folder("search_spaces") / f"{name}.yaml").read_text())
    if "distill" in data:
        data["distill"]["steps"] = list(range(len(data["distill"]["steps"])))
    for recipe in filter(None, data.get("learn", ())):
        recipe["steps"] = 4
        if recipe["recipe"] == "cofi":
            recipe |= {"warmup_steps": 2, "finetune_steps": 2}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def traits(plan: Plan, table: LayerTable) -> set[str]:
    """What a plan does: kinds of groups, techniques of layers, its recipe, its recovery."""
    found: set[str] = {table.group(name).kind for name in plan.groups}
    for layer in plan.layers.values():
        found |= {name for name in ("factorize", "quantize", "mask") if getattr(layer, name)}
        found |= {"bits"} if layer.quantize and layer.quantize.weight_bits else set()
    found |= {type(plan.learn).__name__} if plan.learn else set()
    return found | {name for name in ("mask", "distill") if getattr(plan, name)}


def test_every_shipped_space_is_searched() -> None:
    assert {space for space, _model in PROMISES} == set(shipped_names("search_spaces"))


def test_the_search_ends_with_a_front_and_no_candidate_fails(searched: Searched) -> None:
    run = searched.run
    assert run.state["finished"] == f"{searched.promise.trials} candidates were allowed"
    assert [trial.state for trial in run.trials] == ["DONE"] * searched.promise.trials, [t.error for t in run.trials]
    assert run.front.points
    assert (run.folder / "report.html").is_file()
    assert all((run.folder / entry["artifact"]).is_file() for entry in run.entries())


def test_candidates_differ_in_what_the_space_promises_and_in_nothing_else(searched: Searched) -> None:
    run, promise = searched.run, searched.promise
    assert run.trials[0].plan == Plan()
    own = [trial.plan for trial in run.trials if trial.origin not in ("dense", "uniform-int8")]
    found = set[str]().union(*(traits(plan, run.table) for plan in own))
    assert promise.seen <= found <= promise.does
    assert len({plan.fingerprint for plan in own}) == len(own) >= 2


def test_what_can_be_chosen_is_what_the_space_promises(searched: Searched) -> None:
    kinds = {variable.name.partition(":")[0] for variable in searched.space.variables}
    assert kinds == searched.promise.chooses | (RECOVERY if searched.promise.recovers else set())


def test_no_candidate_is_faster_than_the_probe_thought_reachable(searched: Searched) -> None:
    """Else a budget that can be met would be refused."""
    run = searched.run
    probe = json.loads((run.folder / "probe.json").read_text())
    fastest = min(trial.latency.ratio_best_dense for trial in run.trials if trial.latency)
    assert REACH * probe["smallest_ratio_best_dense"] <= fastest


@pytest.mark.parametrize(
    ("model", "name"),
    [("bert", "transformer"), ("vit", "transformer"), ("gpt2", "decoder"), ("llama", "decoder"), ("residual", "cnn"),
     ("bag", "generic")],
)  # fmt: skip
def test_the_default_space_follows_the_model(model: str, name: str) -> None:
    assert default_space(table_of(make_task(model))) == name
