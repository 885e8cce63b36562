"""What is gained by telling a search what is asked: against the same search that is not told, and then asked.

    python benchmarks/asked.py [--task digits | sst2] [--seeds 3] [--threads 1] [--show]

Staged over the joint space without training, by the evaluator of benchmarks/search.py, which takes a small part of the
time of a candidate that is exported and timed. So it is candidates that are counted, as many as a search of a few
minutes makes of small models; as there, the losses of all single choices are known before the first. One search for the
whole front, of which each request is answered; and one search for each request, told it from the beginning, of as many
candidates. Of the answers: accuracy on the samples that chose it and on others, divergence from dense, latency. Adds
lines to benchmarks/results/asked.jsonl.
"""

from __future__ import annotations

import math
import statistics

import common
from searching.evaluator import Evaluator, opened
from searching.methods import staged

from autocompress.budgets import Budgets
from autocompress.drop import Drop
from autocompress.front import Front, fits

TASKS = {"digits": "digits", "sst2": "minilm"}

#: Candidates, dense among them.
MOST = 60

#: What is asked, in words; the first stands for the whole front.
REQUESTS = {
    "digits": {
        "": Budgets(),
        "6x": Budgets(min_speedup=6.0),
        "6.4x": Budgets(min_speedup=6.4),
        "2pt": Budgets(max_drop=Drop(0.02, relative=False)),
    },
    "sst2": {
        "": Budgets(),
        "8x": Budgets(min_speedup=8.0),
        "12x": Budgets(min_speedup=12.0),
        "3pt": Budgets(max_drop=Drop(0.03, relative=False)),
    },
}


def run(task: str, asked: str, seed: int) -> dict:
    """One search, and its answer to what it was told, or to every request where it was told none."""
    with opened(TASKS[task], math.inf) as evaluator:
        staged(evaluator, seed, REQUESTS[task][asked], MOST)
        spent_s = round(evaluator.clock, 1)
        front = Front(tuple(evaluator.trials), evaluator.task.metric.maximize)
        answers = {
            name: answer(evaluator, front, budgets)
            for name, budgets in REQUESTS[task].items()
            if budgets and asked in ("", name)
        }
    return {"spent_s": spent_s, "candidates": len(front.measured), "answers": answers}


def answer(evaluator: Evaluator, front: Front, budgets: Budgets) -> dict:
    """The best for a request, as `autocompress pick` chooses it, and how many keep it; that alone where none does."""
    dense, maximize = front.quality(front.dense), front.maximize
    kept = [trial for trial in front.measured if fits(trial, budgets, dense, maximize)]
    if not kept:
        return {"kept": 0}
    best = front.choose(budgets)
    return {
        "kept": len(kept),
        "ratio": round(best.latency.ratio, 5),
        "quality": round(best.quality, 5),
        "divergence": round(best.divergence, 5),
        "least_divergence": round(min(trial.divergence for trial in kept), 5),
        "fresh_quality": round(evaluator.fresh_quality(best.plan), 5),
    }


def main() -> None:
    chosen = common.options(__doc__, task="digits", seeds=3, first=0)
    sheet = common.Sheet("asked")
    if not chosen.show:
        for seed in range(chosen.first, chosen.seeds):
            for asked in REQUESTS[chosen.task]:
                sheet.run(
                    lambda asked=asked, seed=seed: run(chosen.task, asked, seed),
                    task=chosen.task, asked=asked or "nothing", seed=seed,
                )  # fmt: skip
    heads = ("asked", "told", "answered", "candidates", "that keep it", "accuracy", "fresh", "divergence", "faster")
    for task, requests in REQUESTS.items():
        rows = [row(sheet, task, asked, told) for asked in requests if asked for told in (True, False)]
        if any(rows):
            common.show(f"{task}: medians over the seeds that have an answer", heads, filter(None, rows))


def row(sheet: common.Sheet, task: str, asked: str, told: bool) -> tuple[str, ...] | None:
    """Answers to one request by the searches that were told it, or by those that were told nothing."""
    case = {"task": task, "asked": asked if told else "nothing"}
    lines = [line["values"] for line in sheet.lines if case.items() <= line["case"].items()]
    if not lines:
        return None
    found = [line["answers"][asked] for line in lines]
    answered = [one for one in found if one["kept"]]

    def middle(key: str) -> float:
        return statistics.median(one[key] for one in answered) if answered else math.nan

    return (
        asked, "yes" if told else "no", f"{len(answered)} of {len(found)}",
        f"{statistics.median(line['candidates'] for line in lines):.0f}",
        f"{statistics.median(one['kept'] for one in found):.0f}",
        f"{100 * middle('quality'):.2f}", f"{100 * middle('fresh_quality'):.2f}", f"{middle('least_divergence'):.4f}",
        f"{1 / middle('ratio'):.2f}x",
    )  # fmt: skip


if __name__ == "__main__":
    main()
