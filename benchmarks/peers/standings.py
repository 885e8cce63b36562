"""What came out: rows, the best of each side, and the table."""

from __future__ import annotations

import common
import numpy as np

from autocompress.measure.timing import bootstrap_nested
from peers.contest import graded, label, read
from peers.lists import BATCH, PROFILES

#: Points of validation accuracy that the compared files may lose.
MOST_LOST = 1.0


def bits(line: dict) -> np.ndarray:
    """Which test samples a graded file gets right, ``(n,)``."""
    packed = np.frombuffer(bytes.fromhex(line["values"]["hits"]), dtype=np.uint8)
    return np.unpackbits(packed, count=line["values"]["samples"]).astype(float)


def lost(left: dict, right: dict) -> tuple[float, float]:
    """Points of test accuracy that `right` lacks to `left`, and half of the paired 95 % interval."""
    difference = bits(left) - bits(right)
    return 100 * float(difference.mean()), 196 * float(difference.std(ddof=1) / np.sqrt(len(difference)))


def rows_of(sheet: common.Sheet, model: str) -> list[dict]:
    """One row per file and runtime, with its speed in the newest race where it took part."""
    lines = graded(sheet, model)
    races = [
        line["values"] for line in sheet.lines if line["case"]["stage"] == "race" and line["case"]["model"] == model
    ]
    rows = []
    for (maker, arm, runtime), line in lines.items():
        row = {"model": model, "maker": maker, "arm": arm, "runtime": runtime, "name": label(maker, arm, runtime)}
        row |= {"line": line, "error": line["values"].get("error"), "float": maker == "dense" or arm == "fp32-fused"}
        dense = lines.get(("dense", "fp32", runtime))
        if not row["error"] and dense and not dense["values"].get("error"):
            row["validation_lost"] = 100 * (dense["values"]["validation"] - line["values"]["validation"])
            row["test_lost"] = lost(dense, line)
        if races and row["name"] in races[-1]["ratio"] and races[-1]["files"][row["name"]] == line["case"]["file"]:
            value, low, high = races[-1]["ratio"][row["name"]]
            row |= {"speedup": [1 / value, 1 / high, 1 / low], "latency_s": races[-1]["latency_s"][row["name"]]}
            row["race"] = races[-1]
        if races and row["float"]:
            seconds = [s for name, s in races[-1]["fp32"]["latency_s"].items() if name.startswith(row["name"] + ", ")]
            row |= {"latency_s": min(seconds)} if seconds else {}
        rows.append(row)
    return rows


def best(rows: list[dict]) -> dict | None:
    """The fastest that loses at most `MOST_LOST` points of validation; where none does, the one that loses least."""
    fit = [row for row in rows if row.get("speedup") and "validation_lost" in row]
    within = [row for row in fit if row["validation_lost"] <= MOST_LOST]
    if within:
        return max(within, key=lambda row: row["speedup"][0])
    return min(fit, key=lambda row: row["validation_lost"], default=None)


def duel(ours: dict, theirs: dict) -> dict:
    """Two rows against each other, by blocks of the same rounds and by the same test samples."""
    ratio = bootstrap_nested([rounds.ratios(theirs["name"], ours["name"]) for rounds in read(ours["race"])])
    more, half = lost(theirs["line"], ours["line"])
    return {
        "model": ours["model"],
        "runtime": ours["runtime"],
        "speedup_ours": ours["speedup"][0],
        "speedup_best_peer": theirs["speedup"][0],
        "drop_ours": ours["test_lost"][0],
        "drop_best_peer": theirs["test_lost"][0],
        "ours": ours["name"],
        "best_peer": theirs["name"],
        "times_as_fast_as_peer": [ratio.value, ratio.low, ratio.high],
        "points_lost_to_peer": [more, more - half, more + half],
    }


def summary(sheet: common.Sheet | None = None) -> list[dict]:
    """`int8` of benchmarks/results/hardware/summary.json: of each model and runtime, ours and the best peer.

    Speed-ups are over the fastest fp32 of the race, drops in points of test accuracy against dense in that runtime.
    What has not been raced is left out.
    """
    sheet = sheet or common.Sheet("peers")
    found = []
    for model in BATCH:
        rows = [row for row in rows_of(sheet, model) if not row["float"]]
        for runtime in PROFILES:
            here = [row for row in rows if row["runtime"] == runtime]
            ours = best([row for row in here if row["maker"] == "autocompress"])
            theirs = best([row for row in here if row["maker"] != "autocompress"])
            if ours and theirs:
                found.append(duel(ours, theirs))
    return found


def against_nncf(sheet: common.Sheet, model: str) -> dict | None:
    """Our best file in any runtime against NNCF's best in OpenVINO."""
    rows = rows_of(sheet, model)
    ours = best([row for row in rows if row["maker"] == "autocompress"])
    theirs = best([row for row in rows if row["maker"] == "nncf" and row["runtime"] == "openvino"])
    return duel(ours, theirs) if ours and theirs else None


def tables(sheet: common.Sheet) -> None:
    for model in BATCH:
        races = [line for line in sheet.lines if line["case"]["stage"] == "race" and line["case"]["model"] == model]
        reference = races[-1]["values"]["reference"] if races else "not raced yet"
        rows = sorted(rows_of(sheet, model), key=lambda row: (row["runtime"], -row.get("speedup", [0])[0]))
        heads = ["runtime", "by", "setting", "speed-up", "ms", "lost val", "lost test", "MB"]
        common.show(f"{model}, batch {BATCH[model]}: int8 against {reference}", heads, map(cells, rows))
        for found in filter(None, [*(d for d in summary(sheet) if d["model"] == model), against_nncf(sheet, model)]):
            fast, points = found["times_as_fast_as_peer"], found["points_lost_to_peer"]
            print(
                f"{found['ours']} is {fast[0]:.2f}x as fast ({fast[1]:.2f}-{fast[2]:.2f}) as {found['best_peer']}, "
                f"test {0 - points[0]:+.2f} points ({0 - points[2]:+.2f} to {0 - points[1]:+.2f})"
            )
        print()


def cells(row: dict) -> list[str]:
    """A row of the table in words."""
    start = [row["runtime"], row["maker"], row["arm"]]
    if row["error"]:
        return [*start, row["error"], "", "", "", ""]
    speed = "{:.2f}x ({:.2f}-{:.2f})".format(*row["speedup"]) if "speedup" in row else "–"
    values = row["line"]["values"]
    return [
        *start,
        speed,
        f"{1000 * row['latency_s']:.2f}" if "latency_s" in row else "–",
        f"{row['validation_lost']:+.2f}" if "validation_lost" in row else "–",
        "{:+.2f} ± {:.2f}".format(*row["test_lost"]) if "test_lost" in row else "–",
        f"{values['size_bytes'] / 1e6:.1f}",
    ]
