"""What the benchmarks of latencies found, in one file: benchmarks/results/hardware/summary.json.

    python benchmarks/hardware.py

Runs nothing: it joins what repeatability.py, table.py and peers.py wrote under benchmarks/results/. A figure that
nobody has measured yet is null, a list of them empty.
"""

from __future__ import annotations

import json

import common
import repeatability
import table
from peers import standings

from autocompress.environment import environment
from autocompress.records import write_json


def summary() -> dict:
    """Every figure of the summary, with the environment it was joined in."""
    return {
        **repeatability.summary(common.Sheet("repeatability")),
        "table": table.summary(common.Sheet("table")),
        "int8": standings.summary(),
        "environment": environment(),
    }


def main() -> None:
    path = common.RESULTS / "hardware" / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = summary()
    write_json(path, found)
    print(json.dumps(found, indent=1))
    print(path)


if __name__ == "__main__":
    main()
