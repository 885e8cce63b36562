"""Latency tables: units timed alone, whole models composed of them, and tables taken along from another device.

Names are imported when first asked for, so that a recorded table answers without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.tables.measuring import measure_table
    from autocompress.tables.menus import Menu, calibration_plans, menu_of, menu_plans
    from autocompress.tables.recorded import Recorded, RecordedBench, load_recorded
    from autocompress.tables.recording import record
    from autocompress.tables.table import LatencyTable

_HOMES = {
    "LatencyTable": "table",
    "Menu": "menus",
    "Recorded": "recorded",
    "RecordedBench": "recorded",
    "calibration_plans": "menus",
    "load_recorded": "recorded",
    "measure_table": "measuring",
    "menu_of": "menus",
    "menu_plans": "menus",
    "record": "recording",
}

__all__ = [
    "LatencyTable",
    "Menu",
    "Recorded",
    "RecordedBench",
    "calibration_plans",
    "load_recorded",
    "measure_table",
    "menu_of",
    "menu_plans",
    "record",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress.tables' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autocompress.tables.{_HOMES[name]}"), name)
