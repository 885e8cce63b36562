"""Does a long search stay quick? Many evaluated trials: resuming, proposing, memory; and a program over many layers.

    python benchmarks/scale.py [--trials 10000] [--show]

Trials are made up (values of the joint transformer space on MiniLM's layers that Optuna drew, figures drawn), written
as a search writes them. Measured are: reading them and opening the journal again, with the staged search's first
proposal; one proposal by the staged search (mean and median: now and then it solves the program anew) and by each of
Optuna's samplers; memory held by then; and the program for a plan over 300 layers. Each in a process of its own,
so that nothing that was used and given back hides what is held. Adds lines to benchmarks/results/scale.jsonl; where
benchmarks/search.py has run on `sst2`, what one of its evaluations takes stands beside them.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common
import numpy as np
import psutil

from autocompress.hardware import load_profile
from autocompress.layers import Layer, LayerTable
from autocompress.plan import Plan
from autocompress.records import Latency, Trial, append_line, read_trials
from autocompress.rules import SpaceRules, load_space
from autocompress.searching.atoms import Atoms
from autocompress.searching.controller import Controller
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.parts import parts_of
from autocompress.searching.seen import Clock, Judge
from autocompress.searching.staged import Staged
from autocompress.searching.work import work_model
from autocompress.space import build_space

SAMPLERS = ("tpe", "nsga2", "nsga3", "random")

#: Trials up to which Optuna's samplers are asked.
ASKED = 1000


def trial_of(plan: Plan, number: int, proposal: int, draw: np.random.Generator) -> Trial:
    ratio, quality = float(draw.uniform(0.1, 1)), float(draw.uniform(0.5, 0.9))
    latency = Latency(
        latency_s=ratio / 100, iqr_s=0.0, p90_s=ratio / 100, ratio=ratio, ratio_low=ratio, ratio_high=ratio,
        ratio_best_dense=ratio, ratio_best_dense_low=ratio, ratio_best_dense_high=ratio, source="measured",
        tier="search", runtime="onnxruntime", threads=1, blocks=7, rejected_blocks=0, queries=100,
    )  # fmt: skip
    return Trial(number, plan, "DONE", "sampled", proposal, quality=quality, latency=latency, seconds={"measure": 1.0})


def opened(folder: Path, space, sampler: str, trials=()) -> Controller:
    return Controller(folder / "study.journal", space, True, lambda _trial: {}, sampler, 0, trials)


def space_of():
    return build_space(
        load_space("transformer"), common.table_of(common.load("minilm")), load_profile("cpu-1-thread")
    ).untrained()


def filled(folder: Path, count: int) -> None:
    """A run's journal and trials as a search leaves them; NSGA-II's own where it is asked: it looks for its marks."""
    sampler = "nsga2" if count <= ASKED else "random"
    controller, draw = opened(folder, space_of(), sampler), np.random.default_rng(0)
    for number in range(count):
        proposal = controller.ask()
        trial = trial_of(proposal.plan, number, proposal.number, draw)
        append_line(folder / "trials.jsonl", trial.to_json())
        controller.tell(proposal.number, trial)


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 2**20


def alone(work, *given):
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(work, *given).result()


def staged_of(space, controller, trials) -> Staged:
    parts = parts_of(space)
    draw = np.random.default_rng(0)
    kl = {v.name: (0.0, *np.sort(draw.lognormal(-6, 1, len(v.levels) - 1)).tolist()) for v in space.structure}
    program = Knapsack(space, parts, Atoms(kl, 0, 0), work_model(space.table, 0.02, {"int8": 0.5}), {}, 0.02)
    judge = Judge(True, lambda _trial: True)
    return Staged(space, program, controller, judge, Clock(lambda: 1.0, 0.0, 1e9), trials=trials)


def proposals(ask, tell, count: int) -> list[float]:
    """Seconds of each of some proposals."""
    spent, draw = [], np.random.default_rng(1)
    for number in range(count):
        start = time.perf_counter()
        proposal = ask()
        spent.append(time.perf_counter() - start)
        tell(proposal.number, trial_of(proposal.plan, 10**6 + number, proposal.number, draw))
    return spent


def scaled(count: int) -> dict:
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        alone(filled, folder, count)
        return {"trials": count, **alone(measured, folder, count)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measured(folder: Path, count: int) -> dict:
    space = space_of()
    before, start = megabytes(), time.perf_counter()
    trials = read_trials(folder / "trials.jsonl")
    staged = staged_of(space, opened(folder, space, "tpe", trials), trials)
    first = staged.ask()
    result = {"resumed_s": time.perf_counter() - start, "memory_mb": megabytes() - before}
    staged.tell(first.number, trial_of(first.plan, count, first.number, np.random.default_rng(2)))
    spent = proposals(staged.ask, staged.tell, 40)
    result |= {"staged_s": float(np.mean(spent)), "staged_median_s": float(np.median(spent))}
    for sampler in SAMPLERS if count <= ASKED else ():
        optuna = opened(folder, space, sampler, trials)
        result[f"{sampler}_s"] = float(np.mean(proposals(optuna.ask, optuna.tell, 10)))
    return result


def layers_of(count: int) -> LayerTable:
    layers = tuple(Layer(f"layer{i}", "linear", (512, 512), 512 * 512, 512 * 512 * (1 + i % 7)) for i in range(count))
    return LayerTable(layers, (), sum(layer.params for layer in layers))


def many_layers(count: int) -> dict:
    """The program over a plan of many layers, each with its own precision and rank."""
    rules = {"name": "many", "layers": [{"precision": ["fp32", "int8-dynamic", "int8"], "rank": [1.0, 0.5, 0.25]}]}
    space = build_space(SpaceRules.model_validate(rules), layers_of(count), load_profile("cpu-1-thread")).untrained()
    start = time.perf_counter()
    draw = np.random.default_rng(0)
    kl = {v.name: (0.0, *np.sort(draw.lognormal(-6, 1, len(v.levels) - 1)).tolist()) for v in space.structure}
    program = Knapsack(space, parts_of(space), Atoms(kl, 0, 0), work_model(space.table, 0.1, {"int8": 0.5}), {}, 0.1)
    found = program.front(40)
    return {"layers": count, "seconds": time.perf_counter() - start, "candidates": len(found)}


def main() -> None:
    chosen = common.options(__doc__, trials=10000)
    sheet = common.Sheet("scale")
    if not chosen.show:
        for count in sorted({ASKED, chosen.trials}):
            sheet.run(lambda count=count: scaled(count), trials=count)
        sheet.run(lambda: alone(many_layers, 300), layers=300)
    rows = [
        (str(next(iter(line["case"].items()))), ", ".join(f"{k} {v:.4g}" for k, v in line["values"].items()))
        for line in sheet.lines
    ]
    searches = [line["values"] for line in common.Sheet("search").lines if line["case"]["task"] == "sst2"]
    if searches:
        seconds = float(np.median([values["evaluated_s"] / max(1, len(values["found"])) for values in searches]))
        rows.append(("('an evaluation', 'sst2')", f"seconds {seconds:.4g}"))
    common.show("A long search", ("case", "found"), rows)


if __name__ == "__main__":
    main()
