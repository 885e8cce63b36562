"""Automated model compression that tells the truth about speed.

Give it a trained model, data and a device; it returns the Pareto front of smaller, faster models, each exported,
checked and timed on that device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.compressing.shape import restore
    from autocompress.errors import AutocompressError
    from autocompress.export.folder import from_pretrained
    from autocompress.front import Front
    from autocompress.hardware import HardwareProfile, load_profile
    from autocompress.launch import search
    from autocompress.layers import LayerTable
    from autocompress.pick import Picked, load
    from autocompress.plan import (
        Cofi,
        Distill,
        Factorize,
        GlobalMask,
        Gradual,
        LayerPlan,
        Lora,
        LotteryTicket,
        Mask,
        Plan,
        Prune,
        Quantize,
        Terms,
        plan_from_json,
    )
    from autocompress.records import Artifact, Latency, Trial
    from autocompress.rules import load_space
    from autocompress.run import Run
    from autocompress.tasks import TaskSource, load_task
    from autocompress.tasks.task import Examples, Metric, Task
    from autocompress.toolbox import Compressed, compress
    from autocompress.tuning import ray_tune

#: Public name to the module that holds it; imported when first asked for, so that a report needs no torch.
_HOMES = {
    "Artifact": "records",
    "AutocompressError": "errors",
    "Cofi": "plan",
    "Compressed": "toolbox",
    "Distill": "plan",
    "Examples": "tasks.task",
    "Factorize": "plan",
    "Front": "front",
    "GlobalMask": "plan",
    "Gradual": "plan",
    "HardwareProfile": "hardware",
    "Latency": "records",
    "LayerPlan": "plan",
    "LayerTable": "layers",
    "Lora": "plan",
    "LotteryTicket": "plan",
    "Mask": "plan",
    "Metric": "tasks.task",
    "Picked": "pick",
    "Plan": "plan",
    "Prune": "plan",
    "Quantize": "plan",
    "Run": "run",
    "Task": "tasks.task",
    "TaskSource": "tasks",
    "Terms": "plan",
    "Trial": "records",
    "compress": "toolbox",
    "from_pretrained": "export.folder",
    "load": "pick",
    "load_profile": "hardware",
    "load_space": "rules",
    "load_task": "tasks",
    "plan_from_json": "plan",
    "ray_tune": "tuning",
    "restore": "compressing.shape",
    "search": "launch",
}

__all__ = [
    "Artifact",
    "AutocompressError",
    "Cofi",
    "Compressed",
    "Distill",
    "Examples",
    "Factorize",
    "Front",
    "GlobalMask",
    "Gradual",
    "HardwareProfile",
    "Latency",
    "LayerPlan",
    "LayerTable",
    "Lora",
    "LotteryTicket",
    "Mask",
    "Metric",
    "Picked",
    "Plan",
    "Prune",
    "Quantize",
    "Run",
    "Task",
    "TaskSource",
    "Terms",
    "Trial",
    "compress",
    "from_pretrained",
    "load",
    "load_profile",
    "load_space",
    "load_task",
    "plan_from_json",
    "ray_tune",
    "restore",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"autocompress.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
