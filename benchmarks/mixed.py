"""Mixed precision: is the integer program's choice better than uniform bits, than greedy, and than chance?

    python benchmarks/mixed.py [--seeds 3] [--threads 2] [--part solve | latency | size | images] [--show]

MiniLM-L6 on SST-2 in ONNX Runtime. At four latencies (that of uniform int8, and three between it and dense) and at
the bytes of uniform 4-bit weights and between 4 and 8: test accuracy of the exported files, paired by sample, of the
program's plan, of rounding the least sensitive layers first, and of random mixtures. The same at the bytes of 4, 3 and
2.5 bits for ResNet-20 on CIFAR-10 (`images`), which loses more and has 10,000 test samples. And how long a program of
200 layers × 8 options takes. Adds lines to benchmarks/results/mixed.jsonl.
"""

from __future__ import annotations

import functools
import json
import time

import common
import numpy as np

from autocompress.compressing.sensitivity import sensitivities
from autocompress.export.export import to_arrays
from autocompress.hardware import load_profile
from autocompress.launch import search
from autocompress.measure.latency import Bench
from autocompress.pipeline import build_into
from autocompress.plan import Plan
from autocompress.rules import SpaceRules, load_space
from autocompress.runtimes import open_session
from autocompress.searching.costs import measure_costs
from autocompress.searching.probe import Probe
from autocompress.searching.solve import solve
from autocompress.searching.units import joined, tables_of, units_of
from autocompress.space import build_space
from autocompress.survey import survey
from autocompress.workshop import artifact_folder, open_workshop, write_workload

ROOT = common.ROOT / "runs" / "bench-mixed"
HARDWARE = "cpu-1-thread"

#: Where the latency budgets lie on the way from the fastest uniform plan (0) to dense (1), in the logarithm.
PLACES = (0.0, 0.25, 0.5, 0.75)

#: Bits within an integer precision, for the budgets in bytes; the files are no shorter for it.
BITS = {"linear": (8, 4, 3), "conv": (8, 4, 3, 2)}

#: What the sizes are told of, by part.
TITLES = {"latency": "MiniLM on SST-2, budgets in latency", "size": "MiniLM on SST-2, budgets in size",
          "images": "ResNet-20 on CIFAR-10, budgets in size"}  # fmt: skip


def solve_seconds(seed: int, names: tuple[str, ...]) -> dict:
    """A program as large as is asked for: 200 layers × 8 options, with one or two budgets."""
    draw = np.random.default_rng(seed)
    bits = np.array([32, 16, 8, 7, 6, 5, 4, 3])
    sizes = draw.lognormal(size=(200, 1)) * 1e6 * bits / 8
    seconds = draw.lognormal(size=(200, 1)) * 1e-4 * (bits / 32) * draw.uniform(0.8, 1.2, (200, 8))
    errors = draw.lognormal(sigma=2, size=(200, 1)) * 4.0**-bits * draw.uniform(0.5, 2, (200, 8))
    costs = {"latency": seconds.tolist(), "size": sizes.tolist()}
    limits = {"latency": 0.3 * seconds[:, 0].sum(), "size": 0.25 * sizes[:, 0].sum()}
    start = time.perf_counter()
    found = solve(errors.tolist(), costs, {name: limits[name] for name in names})
    return {"solve_s": time.perf_counter() - start, "gap": max(0.0, found.error - found.bound) / found.error}


def greedy(errors, costs, budget) -> list[int]:
    """The least sensitive units take their cheapest option first, whatever it saves, until the budget is kept."""
    choice = [int(np.argmin(row)) for row in errors]
    cheapest = [int(np.argmin(row)) for row in costs]
    for unit in sorted(range(len(errors)), key=lambda u: errors[u][cheapest[u]]):
        if total(costs, choice) <= budget:
            break
        choice[unit] = cheapest[unit]
    return choice


def chance(errors, costs, budget, seed) -> list[int]:
    """Units in random order take a random cheaper option, then their cheapest one, until the budget is kept."""
    draw = np.random.default_rng(seed)
    choice = [int(np.argmin(row)) for row in errors]
    for last in (False, True):
        for unit in draw.permutation(len(errors)):
            if total(costs, choice) <= budget:
                return choice
            cheaper = [o for o, cost in enumerate(costs[unit]) if cost < costs[unit][choice[unit]]]
            if cheaper:
                choice[unit] = int(np.argmin(costs[unit])) if last else int(draw.choice(cheaper))
    return choice


def total(table, choice) -> float:
    return sum(row[option] for row, option in zip(table, choice, strict=True))


def evaluated(plan, shop, timed) -> dict:
    """Latency ratio and test hits of a plan's own file."""
    built = build_into(shop.root / "candidate", plan, shop, keep_weights=False)
    path = shop.root / built.artifact.path
    values = {"hits": hits(path, shop), "size_bytes": built.artifact.size_bytes, "plan": plan.to_json()}
    values["accuracy"] = values["hits"].count("1") / len(values["hits"])
    if timed:
        latency = shop.bench.measure(path, tier="report")
        values |= {"ratio": latency.ratio, "ratio_low": latency.ratio_low, "ratio_high": latency.ratio_high}
    return values


def hits(path, shop) -> str:
    """One digit per test sample: whether the file gets it right."""
    session, test = open_session(path, shop.profile.runtime, shop.profile.threads), shop.task.test
    found = np.zeros(len(test), dtype=int)
    for rows, inputs, targets in test.batches(32):
        found[rows] = session.run(to_arrays(inputs))[0].argmax(-1) == targets.numpy()
    return "".join(map(str, found))


def compared(sheet, part, shop, made, seeds) -> None:
    """All methods at all budgets of one part; budgets are totals of what the part limits."""
    units, tables, along, budgets, uniform = made
    costs, errors = tables.costs[along], tables.errors
    timed = along == "latency"
    for name, plan in uniform.items():
        sheet.run(functools.partial(evaluated, plan, shop, timed), part=part, method=name, budget="", seed=0)
    for name, budget in budgets.items():
        best = solve(errors, {along: costs}, {along: budget})
        choices = {("solved", 0): list(best.options), ("greedy", 0): greedy(errors, costs, budget)}
        choices |= {("random", seed): chance(errors, costs, budget, seed) for seed in range(seeds)}
        for (method, seed), choice in choices.items():
            plan = joined([unit.options[option] for unit, option in zip(units, choice, strict=True)])

            def work(plan=plan, choice=choice, budget=budget) -> dict:
                said = {"error_nats": total(errors, choice), "cost": total(costs, choice), "allowed": budget}
                return evaluated(plan, shop, timed) | said

            sheet.run(work, part=part, method=method, budget=name, seed=seed)


def latency_part(shop, space, probe):
    """Budgets between the fastest uniform precision and dense, by the costs of the layer classes."""
    units = units_of(space)
    options = [option for unit in units for option in unit.options]
    costs = measure_costs(shop, options, probe, float("inf"), print)
    tables = tables_of(units, sensitivities(shop.bank, options, say=print), costs.seconds, shop.table)
    uniform = {
        precision: space.decode(space.uniform(precision=precision))
        for precision in ("int8-dynamic", "int8", "int4-weights")
        if precision not in probe.dropped
    }
    low = min(costs.seconds(plan) for plan in uniform.values())
    budgets = {f"{place:.2f}": low ** (1 - place) * costs.dense_s**place for place in PLACES}
    return units, tables, "latency", budgets, {"dense": Plan(), **uniform}


def size_part(shop, kind):
    """Budgets of the bytes that so many bits in every layer of a kind take, and of some between."""
    rule = {"kind": kind, "precision": ["int8"], "weight_bits": list(BITS[kind])}
    rules = {"name": "bits", "strategy": "solve", "solve": {"sweep": "size"}, "layers": [rule]}
    units = units_of(build_space(SpaceRules.model_validate(rules), shop.table, shop.profile))
    options = [option for unit in units for option in unit.options]
    tables = tables_of(units, sensitivities(shop.bank, options, say=print), lambda _plan: 1.0, shop.table)
    levels = {f"{bits} bits": [number] * len(units) for number, bits in enumerate(BITS[kind])}
    uniform = {
        name: joined([unit.options[option] for unit, option in zip(units, choice, strict=True)])
        for name, choice in levels.items()
    }
    bytes_of = {name: total(tables.bytes, choice) for name, choice in levels.items()}
    budgets = {"5.3 bits": (bytes_of["8 bits"] + 2 * bytes_of["4 bits"]) / 3, "4 bits": bytes_of["4 bits"]}
    if "2 bits" in bytes_of:
        budgets |= {"3 bits": bytes_of["3 bits"], "2.5 bits": (bytes_of["3 bits"] + bytes_of["2 bits"]) / 2}
    return units, tables, "size", budgets, uniform


def run_images(sheet, seeds) -> None:
    task, root = common.load("resnet20"), ROOT.with_name("bench-mixed-images")
    profile = load_profile(HARDWARE)
    workload = profile.workload.model_copy(update={"batch": 32, "sequence_length": None})
    profile = profile.model_copy(update={"workload": workload})
    table = survey(task.source, task.workload_inputs(32, None))
    root.mkdir(parents=True, exist_ok=True)
    write_workload(root / "inputs.npz", task, workload)
    with Bench(profile, root / "inputs.npz", artifact_folder(root, Plan()) / "model.onnx") as bench:
        shop = open_workshop(root, task, table, profile, bench)
        compared(sheet, "images", shop, size_part(shop, "conv"), seeds)


def run_models(sheet, part, seeds) -> None:
    task = common.load("minilm")
    search(task, out=ROOT, space="mixed-precision", hardware=HARDWARE, budget="3h", max_trials=2)
    probe, profile = Probe.from_json(json.loads((ROOT / "probe.json").read_text())), load_profile(HARDWARE)
    table = common.table_of(task)
    dense = artifact_folder(ROOT, Plan()) / "model.onnx"
    with Bench(profile, ROOT / "inputs.npz", dense, probe.best_dense) as bench:
        shop = open_workshop(ROOT, task, table, profile, bench)
        if part in ("", "latency"):
            space = build_space(load_space("mixed-precision"), table, profile, probe.dropped)
            compared(sheet, "latency", shop, latency_part(shop, space, probe), seeds)
        if part in ("", "size"):
            compared(sheet, "size", shop, size_part(shop, "linear"), seeds)


def main() -> None:
    chosen = common.options(__doc__, seeds=3, part="")
    sheet = common.Sheet("mixed")
    if not chosen.show and chosen.part in ("", "solve"):
        for limits in (("latency",), ("latency", "size")):
            for seed in range(5):
                work = functools.partial(solve_seconds, seed, limits)
                sheet.run(work, part="solve", method=" and ".join(limits), budget="200 x 8", seed=seed)
    if not chosen.show and chosen.part in ("", "latency", "size"):
        run_models(sheet, chosen.part, chosen.seeds)
    if not chosen.show and chosen.part in ("", "images"):
        run_images(sheet, chosen.seeds)
    tables(sheet)


def paired(own: str, other: str) -> str:
    """Points of accuracy that `own` is ahead on the same samples, with its 95 % interval."""
    ahead = np.array([int(a) - int(b) for a, b in zip(own, other, strict=True)])
    return f"{100 * ahead.mean():+.2f} ± {196 * ahead.std(ddof=1) / np.sqrt(len(ahead)):.2f}"


def rivals(part, cases, budget):
    """What a solved plan is held against: the others at its budget, and uniform plans (at the budgets of their own)."""
    for case, values in cases:
        same = case["budget"] == budget and case["method"] != "solved"
        nearest = part == "latency" and budget == "0.00"
        own = case["method"] == budget or (nearest and case["method"].startswith("int"))
        if same or (not case["budget"] and own):
            yield case, values


def tables(sheet: common.Sheet) -> None:
    times = [line["values"] for line in sheet.lines if line["case"]["part"] == "solve"]
    if times:
        worst = max(values["solve_s"] for values in times)
        print(f"200 layers x 8 options: at most {worst:.2f} s of {len(times)} programs, all solved to the optimum")
    for part in TITLES:
        cases = [(line["case"], line["values"]) for line in sheet.lines if line["case"]["part"] == part]
        rows = []
        for case, values in cases:
            if case["method"] != "solved":
                continue
            rows.append([case["budget"], "solved", ratio(values), f"{100 * values['accuracy']:.2f}", ""])
            for other, found in rivals(part, cases, case["budget"]):
                name = f"{other['method']} {other['seed']}" if other["method"] == "random" else other["method"]
                slower = values.get("ratio_low", 0) > found.get("ratio_high", 0)
                ahead = paired(values["hits"], found["hits"]) + (", but slower" if slower else "")
                rows.append([case["budget"], name, ratio(found), f"{100 * found['accuracy']:.2f}", ahead])
        heads = ["budget", "choice", "of dense latency", "test accuracy, %", "solved is ahead, points"]
        common.show(TITLES[part], heads, rows)


def ratio(values) -> str:
    return f"{values['ratio']:.3f} ({values['ratio_low']:.3f}-{values['ratio_high']:.3f})" if "ratio" in values else ""


if __name__ == "__main__":
    main()
