"""Each post-training technique beside its plain twin, in test accuracy without any training.

    python benchmarks/untrained.py [--model minilm | resnet20] [--seeds 3] [--threads 2] [--show]

OBS repair against zeroing, activation-aware against plain SVD, static calibrators against each other, GPTQ against
rounding at 4 and 3 bits. Seeds draw the 256 calibration samples. Adds lines to benchmarks/results/untrained.jsonl.
"""

from __future__ import annotations

import functools

import common

from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.shape import shape
from autocompress.plan import plan_from_json

MODELS = ("minilm", "resnet20")

#: What is varied, by model: patterns of groups and layers.
GROUPS = {"minilm": ("*/heads", "*/neurons"), "resnet20": ("*/channels",)}
LAYERS = {"minilm": "bert.encoder.layer.*", "resnet20": "layer*.conv*"}


def structure_plans(model, table):
    """Keep levels × choice and repair."""
    for share in (0.75, 0.5, 0.25):
        for twin, score, repair in (
            ("repaired", "obs", True),
            ("zeroed", "obs", False),
            ("magnitude", "magnitude", False),
        ):
            groups = {}
            for group in table.groups:
                if f"*/{group.kind}" in GROUPS[model]:
                    keep = max(1, round(group.size * share))
                    groups[group.name] = {"keep": keep, "score": score, "repair": repair}
            yield {"experiment": "obs repair", "level": f"keep {share:g}", "twin": twin}, {"groups": groups}


def rank_plans(model, table):
    """Ranks × kind of SVD."""
    for share in (0.5, 0.25, 0.125):
        for method in ("activation-aware", "plain"):
            layers = {}
            for layer in table.layers:
                inside = layer.name.startswith(LAYERS[model].split("*")[0])
                if inside and layer.allows("factorize"):
                    full = min(layer.weight_shape[0], layer.params // layer.weight_shape[0])
                    layers[layer.name] = {"factorize": {"rank": max(1, round(full * share)), "method": method}}
            yield {"experiment": "svd", "level": f"rank {share:g}", "twin": method}, {"layers": layers}


def calibrator_plans(model, table):
    """Calibrators × bits of the inputs."""
    for bits in (8, 4):
        for calibrator in ("percentile", "min-max", "mse"):
            settings = {"precision": "int8", "calibrator": calibrator, "activation_bits": bits}
            yield (
                {"experiment": "calibrator", "level": f"{bits}-bit inputs", "twin": calibrator},
                {"layers": {LAYERS[model]: {"quantize": settings}}},
            )


def rounding_plans(model, table):
    """Bits × rounding, weights only where the model has linears, with 8-bit inputs where it has convolutions."""
    precision = "int4-weights" if model == "minilm" else "int8"
    for bits in (4, 3):
        for rounding in ("gptq", "nearest"):
            settings = {"precision": precision, "weight_bits": bits, "rounding": rounding}
            yield (
                {"experiment": "gptq", "level": f"{bits}-bit weights", "twin": rounding},
                {"layers": {LAYERS[model]: {"quantize": settings}}},
            )


def accuracy(task, test, table, bank, data) -> dict:
    plan = plan_from_json(data, "benchmark", table)
    model = shape(task.model, plan, table, bank)
    if plan.groups or any(lp.factorize for lp in plan.layers.values()):
        refresh_batchnorm(model, task.calibration())
    made = quantize(model, plan, table, task.calibration())
    return {"accuracy": common.quality(simulate(made.model, made.codes), task, test)}


def one_seed(sheet, name, reference, seed) -> None:
    task = common.reseeded(reference, seed)
    table = common.table_of(task)
    bank = common.bank_of(task)
    for plans in (structure_plans, rank_plans, calibrator_plans, rounding_plans):
        for case, data in plans(name, table):
            work = functools.partial(accuracy, task, reference.test, table, bank, data)
            sheet.run(work, model=name, **case, seed=seed)


def main() -> None:
    chosen = common.options(__doc__, model="", seeds=3)
    sheet = common.Sheet("untrained")
    for name in () if chosen.show else [chosen.model] if chosen.model else MODELS:
        reference = common.load(name)
        dense = functools.partial(dense_accuracy, reference)
        sheet.run(dense, model=name, experiment="dense", level="", twin="", seed=0)
        for seed in range(chosen.seeds):
            one_seed(sheet, name, reference, seed)
    tables(sheet)


def dense_accuracy(task) -> dict:
    return {"accuracy": common.quality(task.model, task, task.test)}


def tables(sheet: common.Sheet) -> None:
    for model in MODELS:
        dense = common.spread(sheet.values("accuracy", model=model, experiment="dense"))
        rows = {}
        for line in sheet.lines:
            case = line["case"]
            if case["model"] == model and case["twin"]:
                rows.setdefault((case["experiment"], case["level"]), {})[case["twin"]] = None
        shown = []
        for (experiment, level), twins in rows.items():
            case = {"model": model, "experiment": experiment, "level": level}
            found = [f"{twin} {common.spread(sheet.values('accuracy', **case, twin=twin))}" for twin in twins]
            shown.append([experiment, level, *found, *[""] * (3 - len(found))])
        common.show(f"{model}: test accuracy in %, dense {dense}", ["", "level", "", "", ""], shown)


if __name__ == "__main__":
    main()
