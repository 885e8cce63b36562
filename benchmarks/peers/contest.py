"""Grading every file on the data, and the race."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import common
import numpy as np

from autocompress.hardware import load_profile
from autocompress.measure.latency import PROCESSES, Bench, Contestant, Setting
from autocompress.measure.rounds import Rounds, Turn
from autocompress.measure.timing import bootstrap_nested
from autocompress.processors import cores
from autocompress.runtimes import open_session
from peers.lists import PEERS, Entry, entries
from peers.making import Shop, make


def parts(path: Path) -> list[Path]:
    """A file and what belongs to it: the weights of OpenVINO IR, or those that an ONNX file keeps beside itself."""
    return [path, *sorted(other for other in path.parent.glob("model.*") if other != path)]


def digest(path: Path) -> str:
    """16 digits of the sha256 of a file and what belongs to it."""
    found = hashlib.sha256()
    for part in parts(path):
        found.update(part.read_bytes())
    return found.hexdigest()[:16]


def grade(entry: Entry, runtime: str, shop: Shop, made: dict) -> dict:
    """Accuracy on validation and test, and which test samples are right."""
    session = open_session(entry.path, runtime, cores())
    right = {}
    for name, batches in shop.splits.items():
        right[name] = np.concatenate([session.run(x)[0].argmax(-1) == y for x, y in batches])
    return {
        "validation": float(right["validation"].mean()),
        "test": float(right["test"].mean()),
        "samples": len(right["test"]),
        "hits": np.packbits(right["test"]).tobytes().hex(),
        "size_bytes": sum(part.stat().st_size for part in parts(entry.path)),
        **made,
        "packages": list(PEERS[entry.maker].packages) if entry.maker in PEERS else [],
    }


def settle(entry: Entry, shop: Shop, sheet: common.Sheet) -> None:
    """Make and grade one entry in all its runtimes, or write down why there is none."""
    for runtime in entry.runtimes:
        case = {"stage": "grade", "model": entry.model, "maker": entry.maker, "arm": entry.arm, "runtime": runtime}
        try:
            made = make(entry, shop)
            sheet.run(functools.partial(grade, entry, runtime, shop, made), **case, file=digest(entry.path))
        except Exception as fault:  # whatever a tool or a runtime makes of a setting belongs into the table
            if entry.maker == "dense":
                raise
            message = " ".join(f"{type(fault).__name__}: {fault}".split())[:400]
            sheet.run(lambda message=message: {"error": message}, **case, file=None)


def graded(sheet: common.Sheet, model: str) -> dict[tuple[str, str, str], dict]:
    """Maker, arm and runtime to the newest line; of a file that was made at last, not of the fault before it."""
    lines = [line for line in sheet.lines if line["case"]["stage"] == "grade" and line["case"]["model"] == model]
    found: dict[tuple[str, str, str], dict] = {}
    for line in sorted(lines, key=lambda line: line["case"]["file"] is not None):
        case = line["case"]
        found[case["maker"], case["arm"], case["runtime"]] = line
    return found


def label(maker: str, arm: str, runtime: str) -> str:
    """What a contestant is called."""
    return f"{maker}: {arm} @ {runtime}"


def timed(shop: Shop, contestants: list[Contestant], dense: Path, processes: int) -> dict:
    """All contestants in turn against the first, with every round's block medians and faults.

    They race in fresh processes, one set after another, since an interval from one process does not see what differs
    between processes; the rounds are shared among them.
    """
    profile = load_profile("cpu")
    timing = profile.timing
    share = timing.model_copy(update={"max_blocks": max(timing.min_blocks, -(-timing.max_blocks // processes))})
    races = []
    with Bench(profile, shop.inputs, dense) as bench:
        for _ in range(processes):
            bench.close()
            races.append(bench.race(contestants, share, -(-timing.report_queries // processes)))
    first = contestants[0].name
    ratios = {c.name: bootstrap_nested([rounds.ratios(c.name, first) for rounds in races]) for c in contestants}
    return {
        "reference": first,
        "latency_s": {c.name: float(np.median(np.concatenate([r.times(c.name) for r in races]))) for c in contestants},
        "ratio": {name: [found.value, found.low, found.high] for name, found in ratios.items()},
        "rounds": [{name: [*map(written, turns)] for name, turns in rounds.turns.items()} for rounds in races],
        "least": share.min_blocks,
        "rejected": {c.name: sum(rounds.kept(c.name).rejected for rounds in races) for c in contestants},
        "unsteady": {c.name: sum(rounds.kept(c.name).unsteady for rounds in races) for c in contestants},
    }


def written(turn: Turn) -> list:
    """A turn for a line of JSON, without its queries."""
    return [float(f"{turn.seconds:.5g}"), round(turn.slowed, 4), turn.fault]


def read(race: dict) -> list[Rounds]:
    """The rounds of a race, one per process."""
    if "blocks" in race:  # older: of rounds in which nobody had a fault, and of stand-ins
        processes = [
            dict(zip(race["blocks"], lists, strict=True)) for lists in zip(*race["blocks"].values(), strict=True)
        ]
        return [Rounds({name: [*map(Turn, seconds)] for name, seconds in blocks.items()}) for blocks in processes]
    turns = [
        {name: [Turn(s, (), slowed, fault) for s, slowed, fault in turns] for name, turns in rounds.items()}
        for rounds in race["rounds"]
    ]
    return [Rounds(found, [race["reference"]], race["least"]) for found in turns]


def is_there(entry: Entry, line: dict | None) -> bool:
    """Whether the file that was graded is the one on disk."""
    return line is not None and entry.path.is_file() and digest(entry.path) == line["case"]["file"]


def race(model: str, shop: Shop, sheet: common.Sheet, number: int) -> None:
    """One race of everything that was graded; the fp32 files race before it for the place of the reference."""
    lines = graded(sheet, model)
    ready = [(e, r) for e in entries(model) for r in e.runtimes if is_there(e, lines.get((e.maker, e.arm, r)))]
    dense = entries(model)[0].path
    files = {label(e.maker, e.arm, r): lines[e.maker, e.arm, r]["case"]["file"] for e, r in ready}

    def work() -> dict:
        floats = [
            Contestant(f"{label(e.maker, e.arm, r)}, {t} thread{'s' * (t > 1)}", e.path, Setting(r, t))
            for e, r in ready
            if e.floats
            for t in range(1, cores() + 1)
        ]
        first = timed(shop, floats, dense, 1)
        fastest = min(floats, key=lambda contestant: first["ratio"][contestant.name][0])
        others = [Contestant(label(e.maker, e.arm, r), e.path, Setting(r, cores())) for e, r in ready if not e.floats]
        return {**timed(shop, [fastest, *others], dense, PROCESSES), "threads": cores(), "fp32": first, "files": files}

    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    sheet.run(work, stage="race", model=model, files=key, number=number)
