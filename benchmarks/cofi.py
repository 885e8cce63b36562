"""CoFi against optimal brain surgeon + distillation at equal training time, MiniLM on SST-2.

    python benchmarks/cofi.py [--sparsity 0.6] [--arm cofi] [--minutes 30] [--seed 0] [--threads 2] [--show]

Both train for the same number of seconds, told in processor time of one thread so that other programs do not matter:
the steps of each are chosen from the measured time of a step, a quarter of CoFi's after the gates are settled. The
baseline removes the same share of the blocks' weights, heads and neurons alike in all blocks, chosen and repaired by
the optimal brain surgeon, and is distilled with the same terms.
Adds lines to benchmarks/results/cofi.jsonl; the test split is scored once, at the end.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import common
import numpy as np

from autocompress.compressing.shape import shape
from autocompress.distill import TeacherCache, recover
from autocompress.learn.cofi import learn_cofi
from autocompress.learn.gates import Expected
from autocompress.plan import Cofi, Distill, Plan, Prune, Terms
from autocompress.report.survivors import survivors_info

RATE = 7e-5
PROBE_STEPS = 10


def cofi_plan(sparsity: float, steps: int, seed: int) -> Plan:
    finetune = steps // 4
    gates = steps - finetune
    recipe = Cofi(
        sparsity=sparsity, steps=gates, warmup_steps=gates // 3, finetune_steps=finetune, learning_rate=RATE
    )  # fmt: skip
    return Plan(learn=recipe, seed=seed)


def baseline_plan(table, sparsity: float, steps: int, seed: int) -> Plan:
    """The share of heads and neurons, alike in all blocks, that leaves the same share of the blocks' weights."""
    keep = 1 - sparsity
    groups = {}
    for group in table.groups:
        if group.kind in ("heads", "neurons"):
            groups[group.name] = Prune(max(1, round(group.size * keep)))
    terms = Terms(hidden=0.9, hidden_map="dynamic")
    return Plan(groups, distill=Distill(0.5, 2.0, RATE, steps, terms=terms), seed=seed)


def share_gone(plan: Plan, table) -> float:
    import torch

    left = {}
    for group in table.groups:
        if group.kind != "block":
            keep = plan.groups[group.name].keep if group.name in plan.groups else group.size
            left[group.name] = (torch.arange(group.size) < keep).float()
    return float(Expected(table).sparsity(left))


def seconds_per_step(work) -> float:
    """Of a training, by the difference of two lengths: what comes before and after the steps does not count."""
    work(PROBE_STEPS)  # fills the bank
    took = []
    for steps in (PROBE_STEPS, 4 * PROBE_STEPS):
        start = time.process_time()
        work(steps)
        took.append(time.process_time() - start)
    return (took[1] - took[0]) / (3 * PROBE_STEPS)


class Contest:
    def __init__(self, seed: int) -> None:
        self.task = common.load("minilm")
        self.table = common.table_of(self.task)
        self.bank = common.bank_of(self.task)
        self.teacher = TeacherCache(None, self.task)
        self.seed = seed

    def cofi(self, sparsity: float, steps: int):
        plan = cofi_plan(sparsity, steps, self.seed)
        groups, model, history = learn_cofi(self.task, plan, self.table, self.teacher, order=self.bank.order)
        return groups, model, history

    def baseline(self, sparsity: float, steps: int):
        plan = baseline_plan(self.table, sparsity, steps, self.seed)
        model = shape(self.task.model, plan, self.table, self.bank)
        return plan.groups, recover(model, plan, self.task, self.teacher, self.table), []

    def scored(self, arm: str, sparsity: float, seconds: float) -> dict:
        train = getattr(self, arm)
        steps = max(40, int(seconds / seconds_per_step(lambda n: train(sparsity, n))))
        start = time.process_time()
        groups, model, history = train(sparsity, steps)
        spent = time.process_time() - start
        plan = Plan({name: replace(prune, score="magnitude") for name, prune in groups.items()})
        right = common.hits(model, self.task.test)
        info = survivors_info(plan, self.table)
        return {
            "steps": steps,
            "training_s": round(spent, 1),
            "sparsity": share_gone(plan, self.table),
            "validation": common.quality(model, self.task, self.task.validation),
            "test": float(right.mean()),
            "hits": np.packbits(right.astype(bool)).tobytes().hex(),
            "survivors": [[b.heads, b.neurons] for b in info.blocks],
            "hidden": info.hidden,
            "history": history[:: max(1, len(history) // 20)],
        }


def main() -> None:
    chosen = common.options(__doc__, sparsity=0.0, arm="", minutes=30.0, seed=0)
    sheet = common.Sheet("cofi")
    if not chosen.show:
        contest = Contest(chosen.seed)
        for sparsity in [chosen.sparsity] if chosen.sparsity else (0.6, 0.9):
            for arm in [chosen.arm] if chosen.arm else ("cofi", "baseline"):
                work = functools.partial(contest.scored, arm, sparsity, 60 * chosen.minutes)
                sheet.run(work, arm=arm, sparsity=sparsity, minutes=chosen.minutes, seed=chosen.seed)
    rows = []
    for line in sheet.lines:
        case, values = line["case"], line["values"]
        survivors = " ".join(f"{heads}/{neurons}" for heads, neurons in values["survivors"])
        rows.append(
            [
                f"{case['sparsity']:.0%}",
                case["arm"],
                f"{case['minutes']:g} min, {values['steps']} steps",
                f"{values['sparsity']:.3f}",
                f"{100 * values['validation']:.2f}",
                f"{100 * values['test']:.2f}",
                f"{survivors}, hidden {values['hidden']}",
            ]
        )
    heads = ["target", "", "training", "gone", "validation", "test", "heads/neurons per block"]
    common.show("MiniLM on SST-2", heads, rows)


if __name__ == "__main__":
    main()
