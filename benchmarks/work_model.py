"""Is a latency table worth its minutes? Seconds of whole models foretold from the work that they leave, and by a table.

    python benchmarks/work_model.py [--show]

The 30 models whose measured seconds benchmarks/results/table.jsonl holds, in four cases. The model of work is fitted to
k of them, drawn anew 40 times, and foretells the others; beside it stands the table's own error on the same models,
which costs timing all units, 4 to 11 minutes. What a probe measures first (the dense model, each precision on all
layers) was not written down there, and is taken from a fit to all 30. Nothing is timed. Adds lines to
benchmarks/results/work_model.jsonl.
"""

from __future__ import annotations

import json

import common
import numpy as np
from table import profile_of

from autocompress.layers import LayerTable
from autocompress.plan import Plan, Precision
from autocompress.rules import load_space
from autocompress.searching.work import WorkModel, work_model
from autocompress.space import SearchSpace, build_space, default_space
from autocompress.survey import survey
from autocompress.tables import calibration_plans, menu_of
from autocompress.tables.blocks import timed_alike
from autocompress.tables.table import rank_correlation

#: Whole models that the fit sees, and how often they are drawn.
FITTED = (0, 3, 6, 12, 20)
DRAWS = 40


def space_of(model: str, runtime: str, threads: int) -> SearchSpace:
    """The space whose menu the table was measured for."""
    task, profile = common.load(model), profile_of(model, runtime, threads)
    layers = survey(task.source, task.workload_inputs(profile.workload.batch, profile.workload.sequence_length))
    return build_space(load_space(default_space(layers)), layers, profile)


def probed(space: SearchSpace, plans: list[Plan], seconds: np.ndarray) -> WorkModel:
    """What is believed after a probe; its facts are those of a fit to all models."""
    table: LayerTable = space.table
    every = work_model(table, float(2 * np.median(seconds)), {}).fit(plans, seconds)
    dense = every.seconds(Plan())
    offered = {p for choice in space.choices.values() for p in choice.precisions}
    uniform: dict[Precision, Plan] = {p: space.decode(space.uniform(precision=p)) for p in sorted(offered - {"fp32"})}
    return work_model(table, dense, {p: every.seconds(plan) / dense for p, plan in uniform.items()})


def errors(model: WorkModel, plans: list[Plan], seconds: np.ndarray, count: int) -> dict[str, float]:
    """Medians over draws of the models that are fitted."""
    draw, found = np.random.default_rng(count), []
    for _ in range(DRAWS):
        order = draw.permutation(len(plans))
        seen, rest = order[:count], order[count:]
        fitted = model.fit([plans[i] for i in seen], seconds[seen])
        said = np.array([fitted.seconds(plans[i]) for i in rest])
        off = np.abs(said / seconds[rest] - 1)
        found.append((off.mean(), off.max(), rank_correlation(said, seconds[rest])))
    return dict(zip(("mape", "worst", "spearman"), np.median(found, axis=0).tolist(), strict=True))


def compared(space: SearchSpace, models: list[dict]) -> dict:
    """Errors of the model of work by the models that it was fitted to, and of the table."""
    drawn = calibration_plans(space.table, menu_of(space), len(models), 1)
    known = {plan.fingerprint: plan for plan in map(timed_alike, drawn)}
    plans, seconds = [known[one["plan"]] for one in models], np.array([one["measured_s"] for one in models])
    table = np.array([one["predicted_s"] for one in models])
    model = probed(space, plans, seconds)
    return {
        "table": {"mape": float(np.abs(table / seconds - 1).mean()), "spearman": rank_correlation(table, seconds)},
        "work": {str(count): errors(model, plans, seconds, count) for count in FITTED},
    }


def show(sheet: common.Sheet) -> None:
    heads = ("model", "runtime", "table", *(f"work, {count} models" for count in FITTED))
    rows = []
    for line in sheet.lines:
        found = [line["values"]["table"], *(line["values"]["work"][str(count)] for count in FITTED)]
        case = (line["case"]["model"], line["case"]["runtime"])
        rows.append((*case, *(f"{one['mape']:.1%}, {one['spearman']:.3f}" for one in found)))
    common.show("mean error and rank correlation on models outside the fit", heads, rows)


def main() -> None:
    options = common.options(__doc__)
    sheet = common.Sheet("work_model")
    lines = (common.RESULTS / "table.jsonl").read_text().splitlines()
    for case, values in ((line["case"], line["values"]) for line in map(json.loads, lines) if not options.show):
        space = None if sheet.has(**case) else space_of(case["model"], case["runtime"], case["threads"])
        sheet.run(lambda space=space, values=values: compared(space, values["models"]), **case)
    show(sheet)


if __name__ == "__main__":
    main()
