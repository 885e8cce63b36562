"""The searches against each other: same space, same evaluator, same clock.

    python benchmarks/search.py --task digits | sst2 | digits-recovery --method all | staged,nsga2 [--seeds 3] [--show]

The space is the joint one for transformers; without training, but for `digits-recovery`, where λ, T, learning rate and
steps are searched too. The evaluator is the same for every method: the candidate assembled from a bank that starts
empty, recovered where its plan asks for it, its integers computed in torch, the metric on up to 512 fixed validation
samples, and its latency by the structure signatures of its blocks from a table that was recorded once
(benchmarks/searching/*.json, `autocompress record`). So two methods that propose the same candidate see the same
figures. The table belongs to the evaluator: staged reads from it what all may read, latencies of candidates and of each
precision on all layers.

The clock is processor time of one thread, everything counted but the evaluator's own start: bank, losses of single
choices, programs, samplers, journals. NSGA-II and multivariate TPE run as long as `TASKS` says, every
other method as long as staged. The hypervolume is that of (ln latency ratio, quality) up to a reference point that is
fixed beforehand: 1.05 × the dense latency, and the dense error doubled, or 10 points more where that is further. The
best of many candidates are lucky on the samples that chose them: so the last front is graded once more, after all is
over, on the test split and what is left of validation, and the table has the hypervolume of that beside the other;
and that of the front together with the one that divergence from dense tells, which luck has less hold of.

A line per method and seed is added to benchmarks/results/search.jsonl, what is there is not run again, and processes
started alike share the work. `--show` prints the tables and writes summary.json, environment.json, curves.json and
table.md into benchmarks/results/search/; `--picture docs/search.png` draws them, and `--told docs/measured.md` renews
the tables there. `--limit` (seconds, of all methods) and `--out` (a folder in place of benchmarks/results) are for
trying out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import common
from searching.compare import compare
from searching.evaluator import opened
from searching.methods import METHODS


@dataclass(frozen=True)
class Contest:
    """Who searches what, for how long.

    Attributes:
        title: of its table.
        model: of `common.load`, and of the recorded table.
        plain_s, limit_s: seconds of processor time, of `LONG` and of all others.
        methods: in the order in which they run.
        trained: whether plans may ask for recovery.
    """

    title: str
    model: str
    plain_s: float
    limit_s: float
    methods: tuple[str, ...] = tuple(METHODS)
    trained: bool = False


LONG = ("nsga2", "tpe")
TASKS = {
    "digits": Contest("digits ViT, joint space without training", "digits", 1200.0, 240.0),
    "sst2": Contest("MiniLM on SST-2, joint space without training", "minilm", 3600.0, 480.0),
    # A hundred steps take some five seconds: dozens of recoveries each, and 40 minutes for a seed of all four.
    "digits-recovery": Contest(
        "digits ViT, joint space with recovery", "digits", 720.0, 480.0, ("staged", "random", "nsga2", "tpe"), True
    ),
}


def run(task: str, method: str, seed: int, limit_s: float = 0.0) -> dict:
    """One search from an empty bank: every candidate with the second at which it was known."""
    contest = TASKS[task]
    limit_s = limit_s or (contest.plain_s if method in LONG else contest.limit_s)
    with opened(contest.model, limit_s, contest.trained) as evaluator:
        begun = time.perf_counter()
        prepared_s = METHODS[method](evaluator, seed)
        wall_s = round(time.perf_counter() - begun, 1)
        return {"prepared_s": round(prepared_s, 2), "limit_s": limit_s, "wall_s": wall_s, **evaluator.facts()}


def main() -> None:
    chosen = common.options(
        __doc__, task="digits", method="all", seeds=3, first=0, limit=0.0, out="", picture="", told=""
    )
    if chosen.limit and not chosen.out:
        raise SystemExit(f"--limit {chosen.limit:g} is for trying out; name a folder by --out as well")
    if chosen.task not in TASKS:
        raise SystemExit(f"--task must be one of {', '.join(TASKS)}, but got {chosen.task!r}")
    names = TASKS[chosen.task].methods if chosen.method == "all" else chosen.method.split(",")
    unknown = [name for name in names if name not in TASKS[chosen.task].methods]
    if unknown:
        known = ", ".join(TASKS[chosen.task].methods)
        raise SystemExit(f"--method {unknown[0]!r} is no method of {chosen.task}; it has {known}")
    results = Path(chosen.out) if chosen.out else common.RESULTS
    sheet = common.Sheet("search", results)
    if not chosen.show:
        for seed in range(chosen.first, chosen.seeds):
            for name in names:
                sheet.run(
                    lambda name=name, seed=seed: run(chosen.task, name, seed, chosen.limit),
                    task=chosen.task, method=name, seed=seed,
                )  # fmt: skip
    titles = {name: contest.title for name, contest in TASKS.items()}
    page = (results if chosen.out else common.ROOT / "runs") / "bench-search.html"
    picture, told = (Path(name) if name else None for name in (chosen.picture, chosen.told))
    compare(sheet, titles, results / "search", page, picture, told)


if __name__ == "__main__":
    main()
