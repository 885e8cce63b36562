"""Oracle: lines by hand."""

from __future__ import annotations

import io
import math

from rich.console import Console

from autocompress.found import Audit, Found, Importances, Share
from autocompress.show import found_tables

STAGES = [{"stage": "solve", "seconds": 61.0, "candidates": 3, "hypervolume_before": 0.1, "hypervolume_after": 0.15}]
SHARES = (Share("learning_rate", 0.6, 0.3), Share("steps", 0.1, 0.2))


def lines(stages: list[dict[str, object]], found: Found) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=140, highlight=False)
    for table in found_tables(stages, found):
        console.print(table)
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_stages_audits_and_settings_each_have_their_table() -> None:
    audits = (Audit(0, 1, 0.2, 0.31, 5, 0.4), Audit(1, 2, 0.2, 0.5, 4, math.nan))
    said = lines(STAGES, Found((Importances("recovery", 20, 12, SHARES),), audits))
    for line in (
        "solve 61.0 s 3 0.100 0.150 +0.0500",
        "0 → 1 0.200–0.310 5 +0.40 not trusted",
        "1 → 2 0.200–0.500 4 all alike trusted",
        "learning rate 60 % 30 %",
        "steps 10 % 20 %",
    ):
        assert line in said


def test_what_is_not_known_is_not_shown() -> None:
    assert lines([], Found()) == []
    assert lines([], Found((Importances("recovery", 3, 12),))) == []
