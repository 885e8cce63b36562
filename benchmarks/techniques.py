"""Every technique of the catalogue by itself, as its example plan says, on the digits demo.

    python benchmarks/techniques.py [--threads 2] [--show]

Validation accuracy and file size before and after, from the exported files. Adds lines to
benchmarks/results/techniques.jsonl.
"""

from __future__ import annotations

import functools
import tempfile

import common

from autocompress.techniques import TECHNIQUES
from autocompress.toolbox import compress


def apply(task, plan) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        result = compress(task, plan, folder)
    return {
        "what": result.what,
        "accuracy_before": result.quality_before,
        "accuracy": result.quality_after,
        "size_ratio": result.size_bytes_after / result.size_bytes_before,
        "layers_changed": len(result.layers_changed),
        "reloaded": result.reloaded,
    }


def main() -> None:
    chosen = common.options(__doc__)
    sheet = common.Sheet("techniques")
    if not chosen.show:
        task = common.load("digits")
        for item in TECHNIQUES:
            sheet.run(functools.partial(apply, task, item.example_plan), technique=item.id)
    rows = []
    for line in sheet.lines:
        values = line["values"]
        shown = (f"{100 * values['accuracy']:.1f}", f"{values['size_ratio']:.2f}", values["what"])
        rows.append([line["case"]["technique"], *shown])
    dense = f"{100 * sheet.lines[0]['values']['accuracy_before']:.1f}" if sheet.lines else "–"
    common.show(f"digits, dense {dense} %", ["technique", "validation, %", "size", "plan"], rows)


if __name__ == "__main__":
    main()
