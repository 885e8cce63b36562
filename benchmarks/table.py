"""The latency table: how well does it predict whole models that its calibration has not seen?

    python benchmarks/table.py [--model minilm | resnet20] [--runtime onnxruntime | openvino] [--threads 1]
                               [--fitted 24] [--checked 30] [--show]

Times the units of MiniLM-L6 at 1 × 128 tokens and of ResNet-20 at 32 images in ONNX Runtime and OpenVINO, fits the
line on whole models, and checks it on others: mixtures of structure, ranks and precisions. Asked for are a mean error
under 5 % and a rank correlation over 0.98. What was timed lies in runs/bench-table-MODEL-RUNTIME-THREADS, so that the
same command goes on where it was stopped. Adds lines to benchmarks/results/table.jsonl.
"""

from __future__ import annotations

from dataclasses import asdict

import common
import numpy as np

from autocompress.export.export import to_arrays
from autocompress.hardware import load_profile
from autocompress.measure.latency import Bench
from autocompress.rules import load_space
from autocompress.space import build_space, default_space
from autocompress.survey import survey
from autocompress.tables import calibration_plans, measure_table, menu_of, menu_plans
from autocompress.tables.units import signatures
from autocompress.workshop import open_workshop

MODELS = ("minilm", "resnet20")
PROFILES = {"onnxruntime": "cpu-1-thread", "openvino": "openvino-cpu"}
WORKLOADS = {"minilm": {"batch": 1, "sequence_length": 128}, "resnet20": {"batch": 32, "sequence_length": None}}


def profile_of(model, runtime, threads):
    profile = load_profile(PROFILES[runtime])
    workload = profile.workload.model_copy(update=WORKLOADS[model])
    return profile.model_copy(update={"threads": threads, "workload": workload})


def measured(model, runtime, threads, fitted, checked) -> dict:
    """Errors of the table outside its fit, and where they lie."""
    task, profile = common.load(model), profile_of(model, runtime, threads)
    query = task.workload_inputs(profile.workload.batch, profile.workload.sequence_length)
    layers = survey(task.source, query)
    menu = menu_of(build_space(load_space(default_space(layers)), layers, profile))
    root = common.ROOT / "runs" / f"bench-table-{model}-{runtime}-{threads}"
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "inputs.npz", **to_arrays(query))
    plans = [calibration_plans(layers, menu, count, seed) for seed, count in enumerate((fitted, checked))]
    with Bench(profile, root / "inputs.npz", root / "dense" / "model.onnx") as bench:
        shop = open_workshop(root, task, layers, profile, bench)
        table = measure_table(shop, menu_plans(layers, menu), *plans)
    forms = [s.text for plan in plans[1] for s in signatures(table.units, plan, layers).values()]
    return {
        "mape": table.mape,
        "spearman": table.spearman,
        "mape_fit": float(np.mean([abs(check.predicted_s / check.measured_s - 1) for check in table.fitted])),
        "worst": max(abs(check.predicted_s / check.measured_s - 1) for check in table.checked),
        "line": asdict(table.line),
        "entries": len(table.entries),
        "timed_share": sum(text in table.entries for text in forms) / len(forms),
        "models": [asdict(check) for check in table.checked],
    }


def summary(sheet: common.Sheet) -> list[dict]:
    """One record of model, runtime, mape and spearman per case, as `summary.json` holds them."""
    both = ({**line["case"], **line["values"]} for line in sheet.lines)
    return [{key: found[key] for key in ("model", "runtime", "mape", "spearman")} for found in both]


def show(sheet: common.Sheet) -> None:
    heads = ("model", "runtime", "threads", "mean error", "worst", "rank correlation", "models", "units timed as such")
    rows = [
        (
            line["case"]["model"],
            line["case"]["runtime"],
            str(line["case"]["threads"]),
            f"{line['values']['mape']:.1%}",
            f"{line['values']['worst']:.1%}",
            f"{line['values']['spearman']:.3f}",
            str(len(line["values"]["models"])),
            f"{line['values']['timed_share']:.0%}",
        )
        for line in sheet.lines
    ]
    common.show("latency table on models outside its fit", heads, rows)


def main() -> None:
    options = common.options(__doc__, model="", runtime="", fitted=24, checked=30)
    sheet = common.Sheet("table")
    for model in (m for m in MODELS if options.model in ("", m) and not options.show):
        for runtime in (r for r in PROFILES if options.runtime in ("", r)):
            case = {"model": model, "runtime": runtime, "threads": options.threads, "checked": options.checked}
            sheet.run(
                lambda model=model, runtime=runtime: measured(
                    model, runtime, options.threads, options.fitted, options.checked
                ),
                **case,
            )
    show(sheet)


if __name__ == "__main__":
    main()
