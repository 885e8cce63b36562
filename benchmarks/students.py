"""Students by depth: quality kept, and measured speed.

    python benchmarks/students.py [--model minilm | gpt2] [--seeds 3] [--steps 500] [--threads 2] [--show]

MiniLM with every second of its 6 blocks, trained as DistilBERT was (5·logits + 2·task + 1·cosine), and a small GPT-2
with every second of its 6 blocks (`benchmarks/train_lm.py` makes it). Latency is that of the exported file, in turn
with the dense one. Adds lines to benchmarks/results/students.jsonl.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace

import common

from autocompress.distill import by_depth
from autocompress.plan import Distill, Terms
from autocompress.toolbox import compress

MODELS = ("minilm", "gpt2")
RATES = {"minilm": 7e-5, "gpt2": 1e-3}


def student(task, table, name: str, steps: int, seed: int) -> dict:
    settings = Distill(5 / 7, 2.0, RATES[name], steps, terms=Terms(cosine=1 / 7))
    plan = replace(by_depth(table), distill=settings, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        result = compress(task, plan, folder, measure=True)
    return {
        "validation_before": result.quality_before,
        "validation": result.quality_after,
        "ratio": result.latency.ratio,
        "ratio_low": result.latency.ratio_low,
        "ratio_high": result.latency.ratio_high,
        "size_ratio": result.size_bytes_after / result.size_bytes_before,
        "what": result.what,
    }


def main() -> None:
    chosen = common.options(__doc__, model="", seeds=3, steps=500)
    sheet = common.Sheet("students")
    for name in () if chosen.show else [chosen.model] if chosen.model else MODELS:
        task = common.load(name)
        table = common.table_of(task)
        for seed in range(chosen.seeds):
            work = functools.partial(student, task, table, name, chosen.steps, seed)
            sheet.run(work, model=name, steps=chosen.steps, seed=seed)
    rows = []
    for name in MODELS:
        factor = 1.0 if name == "gpt2" else 100.0
        columns = [common.spread(sheet.values(key, model=name), factor) for key in ("validation_before", "validation")]
        speed = common.spread([1 / ratio for ratio in sheet.values("ratio", model=name)], 1.0)
        rows.append([name, *columns, speed, common.spread(sheet.values("size_ratio", model=name), 1.0)])
    common.show("students by depth", ["", "dense", "student", "speed-up", "size"], rows)


if __name__ == "__main__":
    main()
