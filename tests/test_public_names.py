"""The public face: what `autocompress` offers, sorted, importable, and lazy."""

from __future__ import annotations

import subprocess
import sys

import autocompress

PUBLIC = [
    "Artifact", "AutocompressError", "Cofi", "Compressed", "Distill", "Examples", "Factorize", "Front",
    "GlobalMask", "Gradual", "HardwareProfile", "Latency", "LayerPlan", "LayerTable", "Lora", "LotteryTicket",
    "Mask", "Metric", "Picked", "Plan", "Prune", "Quantize", "Run", "Task", "TaskSource", "Terms", "Trial",
    "compress", "from_pretrained", "load", "load_profile", "load_space", "load_task", "plan_from_json", "ray_tune",
    "restore", "search",
]  # fmt: skip


def test_names_are_these_and_sorted() -> None:
    assert autocompress.__all__ == PUBLIC == sorted(PUBLIC)


def test_every_name_imports_and_has_a_docstring() -> None:
    for name in autocompress.__all__:
        assert getattr(autocompress, name).__doc__


def test_no_name_is_hidden_by_a_module_of_the_same_name() -> None:
    """After everything is imported, `autocompress.search` is still the function."""
    code = "import autocompress.launch, autocompress; assert callable(autocompress.search); print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


def test_import_brings_no_heavy_library() -> None:
    code = (
        "import sys, autocompress; print(sorted({'torch', 'optuna', 'onnx', 'transformers', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
