"""Distilled recovery against plain fine-tuning at equal steps, and what searching λ and T adds to the default.

    python benchmarks/recovery.py [--model resnet20 | minilm] [--seeds 3] [--threads 2] [--show]

The same pruned model (half of the structures, repaired) is trained with labels alone (λ = 0), with the default
(λ = 0.5, T = 2), and with the best λ and T of a seeded random search on validation. Learning rates are chosen on
validation for plain and distilled training apart. Test samples that each gets right are kept, for paired differences.
Adds lines to benchmarks/results/recovery.jsonl.
"""

from __future__ import annotations

import functools

import common
import numpy as np

from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.shape import shape
from autocompress.distill import TeacherCache, recover
from autocompress.plan import Distill, Plan, Prune

STEPS = {"resnet20": 400, "minilm": 150}
RATES = {"resnet20": (1e-3, 3e-3, 1e-2), "minilm": (2e-5, 7e-5, 2e-4)}
KINDS = {"resnet20": ("channels",), "minilm": ("heads", "neurons")}
SEARCHED = 8


class Course:
    """One pruned model and everything that trains it."""

    def __init__(self, name: str) -> None:
        self.task = common.load(name)
        self.name = name
        self.table = common.table_of(self.task)
        self.groups = {
            g.name: Prune(max(1, g.size // 2)) for g in self.table.groups if g.kind in KINDS[name] and g.size > 1
        }
        self.start = shape(self.task.model, Plan(self.groups), self.table, common.bank_of(self.task))
        refresh_batchnorm(self.start, self.task.calibration())
        self.teacher = TeacherCache(None, self.task)

    def trained(self, soft_weight: float, temperature: float, rate: float, seed: int):
        settings = Distill(soft_weight, temperature, rate, STEPS[self.name])
        plan = Plan(self.groups, distill=settings, seed=seed)
        return recover(self.start, plan, self.task, self.teacher, self.table)

    def validate(self, soft_weight: float, temperature: float, rate: float, seed: int) -> dict:
        model = self.trained(soft_weight, temperature, rate, seed)
        return {"validation": common.quality(model, self.task, self.task.validation)}

    def test(self, soft_weight: float, temperature: float, rate: float, seed: int) -> dict:
        right = common.hits(self.trained(soft_weight, temperature, rate, seed), self.task.test)
        return {"test": float(right.mean()), "hits": np.packbits(right.astype(bool)).tobytes().hex()}

    def untrained(self) -> dict:
        right = common.hits(self.start, self.task.test)
        return {"test": float(right.mean()), "hits": np.packbits(right.astype(bool)).tobytes().hex()}


def best(sheet: common.Sheet, **case) -> dict:
    """The case of the highest validation quality."""
    lines = [line for line in sheet.lines if case.items() <= line["case"].items()]
    return max(lines, key=lambda line: line["values"]["validation"])["case"]


def run(sheet: common.Sheet, name: str, seeds: int) -> None:
    course = Course(name)
    sheet.run(course.untrained, model=name, stage="test", arm="untrained", seed=0)
    for arm, soft, temperature in (("plain", 0.0, 2.0), ("default", 0.5, 2.0)):
        for rate in RATES[name]:
            work = functools.partial(course.validate, soft, temperature, rate, 100)
            sheet.run(work, model=name, stage="rate", arm=arm, rate=rate)
    rate = best(sheet, model=name, stage="rate", arm="default")["rate"]
    draw = np.random.default_rng(0)
    for number in range(SEARCHED):
        soft, temperature = round(float(draw.uniform(0, 1)), 3), round(float(np.exp(draw.uniform(0, np.log(8)))), 3)
        work = functools.partial(course.validate, soft, temperature, rate, 100)
        sheet.run(work, model=name, stage="search", number=number, soft_weight=soft, temperature=temperature)
    found = best(sheet, model=name, stage="search")
    plain_rate = best(sheet, model=name, stage="rate", arm="plain")["rate"]
    arms = {
        "plain": (0.0, 2.0, plain_rate),
        "default": (0.5, 2.0, rate),
        "searched": (found["soft_weight"], found["temperature"], rate),
    }
    for seed in range(seeds):
        for arm, settings in arms.items():
            work = functools.partial(course.test, *settings, seed)
            sheet.run(work, model=name, stage="test", arm=arm, seed=seed)


def paired(sheet: common.Sheet, model: str, left: str, right: str) -> str:
    """Mean difference in points over seeds and samples, with a 95 % interval over samples."""
    rows = []
    for line in sheet.lines:
        case = line["case"]
        if case["model"] == model and case["stage"] == "test" and case["arm"] == left:
            other = next((o for o in sheet.lines if o["case"] == {**case, "arm": right}), None)
            if other:
                rows.append(bits(line) - bits(other))
    if not rows:
        return "–"
    mean = np.mean(rows, axis=0)
    error = mean.std(ddof=1) / np.sqrt(len(mean))
    return f"{100 * mean.mean():+.2f} ± {196 * error:.2f}"


def bits(line: dict) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(line["values"]["hits"]), dtype=np.uint8)).astype(float)


def main() -> None:
    chosen = common.options(__doc__, model="", seeds=3)
    sheet = common.Sheet("recovery")
    for name in () if chosen.show else [chosen.model] if chosen.model else STEPS:
        run(sheet, name, chosen.seeds)
    rows = []
    for name in STEPS:
        for arm in ("untrained", "plain", "default", "searched"):
            shown = common.spread(sheet.values("test", model=name, stage="test", arm=arm))
            gap = paired(sheet, name, arm, "plain") if arm in ("default", "searched") else ""
            more = paired(sheet, name, arm, "default") if arm == "searched" else ""
            rows.append([name, arm, shown, gap, more])
    common.show("test accuracy in %", ["", "", "accuracy", "points over plain", "points over default"], rows)


if __name__ == "__main__":
    main()
