"""The searches against each other: same space, same evaluator, same clock.

    python benchmarks/search.py --task digits | sst2 --method all | staged | nsga2 | … [--seeds 3] [--show]

The space is the joint one for transformers, without training. The evaluator is the same for every method: the candidate
assembled from a bank that starts empty, its integers computed in torch, the metric on 512 fixed validation samples, and
its latency by the structure signatures of its blocks from a table that was recorded once (benchmarks/searching/*.json,
`autocompress record`). So two methods that propose the same candidate see the same figures.

The clock is processor time of one thread, everything counted but the evaluator's own start: bank, losses of single
choices, programs, samplers, journals. NSGA-II and multivariate TPE run as long as `LIMITS` says, every other method as
long as staged. Adds a line per method and seed to benchmarks/results/search.jsonl; `--show` prints the table and writes
benchmarks/results/search/summary.json with the curves beside it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import common
from searching.compare import compare
from searching.evaluator import Evaluator
from searching.methods import METHODS

#: Seconds of processor time: of the plain baselines, and of staged and all others.
LIMITS = {"digits": (1200.0, 240.0), "sst2": (3600.0, 480.0)}
LONG = ("nsga2", "tpe")
MODELS = {"digits": "digits", "sst2": "minilm"}


def run(task: str, method: str, seed: int) -> dict:
    """One search from an empty bank: every candidate with the second at which it was known."""
    limit_s = LIMITS[task][0 if method in LONG else 1]
    folder = Path(tempfile.mkdtemp(prefix=f"search-{task}-{method}-"))
    try:
        recorded = common.ROOT / "benchmarks" / "searching" / f"{MODELS[task]}.json"
        evaluator = Evaluator(common.load(MODELS[task]), recorded, folder, limit_s)
        prepared_s = METHODS[method](evaluator, seed)
        return {"prepared_s": prepared_s, "limit_s": limit_s, **evaluator.facts()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    chosen = common.options(__doc__, task="digits", method="all", seeds=3, first=0)
    sheet = common.Sheet("search")
    if not chosen.show:
        names = list(METHODS) if chosen.method == "all" else chosen.method.split(",")
        for seed in range(chosen.first, chosen.seeds):
            for name in names:
                sheet.run(
                    lambda name=name, seed=seed: run(chosen.task, name, seed), task=chosen.task, method=name, seed=seed
                )
    compare(sheet, common.RESULTS / "search")


if __name__ == "__main__":
    main()
