"""Our int8 beside that of NNCF, ONNX Runtime's quantizer and Intel Neural Compressor, against the fastest fp32.

    python benchmarks/peers.py [--model minilm | resnet20] [--stage make | race] [--race 0] [--skip ARM,ARM]
                               [--threads 2] [--show]

Each peer works in an environment of its own under benchmarks/.peers/, made on first use, and gets the dense ONNX file
that we export, the samples that calibrate ours, and where it tunes by accuracy a part of the validation split. Every
file is graded on validation and test in the batch that is timed, and keeps which test samples it gets right. Then one
race times them all in turn on all cores; its reference is the fastest fp32 file, runtime and number of threads, found
in a race before it. Of each side the fastest file that loses at most a point of *validation* is the one compared; where
none does, the one that loses least. A peer that cannot be installed, or quantizes nothing, stays in the table with its
message. `--skip` leaves settings out, such as those that tune for an hour. `--race 1` times again, after 0. Adds lines
to benchmarks/results/peers.jsonl.
"""

from __future__ import annotations

import common
from peers.contest import race, settle
from peers.lists import BATCH, entries
from peers.making import Shop
from peers.standings import tables


def main() -> None:
    chosen = common.options(__doc__, model="", stage="", race=0, skip="")
    sheet = common.Sheet("peers")
    for model in () if chosen.show else [chosen.model] if chosen.model else BATCH:
        shop = Shop(model)
        if chosen.stage in ("", "make"):
            for entry in entries(model):
                if entry.arm not in chosen.skip.split(","):
                    settle(entry, shop, sheet)
        if chosen.stage in ("", "race"):
            race(model, shop, sheet, chosen.race)
    tables(sheet)


if __name__ == "__main__":
    main()
