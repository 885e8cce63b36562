"""What every peer's script shares: the job it is given, the samples in it, and how it answers.

Runs in the peer's own environment; needs NumPy alone. A job is a JSON file: `arm` (which of the script's settings),
`dense` (the fp32 ONNX file), `calibration` and `validation` (.npz files), `out` (the file to write), and `transformer`
({"heads": …, "hidden": …}, or null for a convolutional network).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: Where a sample's class stands among its inputs.
LABEL = ":label"


def read(path: str) -> list[dict[str, np.ndarray]]:
    """The samples of an .npz file in order, each a mapping of input names to arrays of batch 1, without their class."""
    return [{name: value for name, value in sample.items() if name != LABEL} for sample in _all(path)]


def labels(path: str) -> np.ndarray:
    """The classes of the samples, ``(n,)``."""
    return np.concatenate([sample[LABEL] for sample in _all(path)])


def _all(path: str) -> list[dict[str, np.ndarray]]:
    samples: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            number, name = key.split(".", 1)
            samples.setdefault(number, {})[name] = stored[key]
    return [samples[number] for number in sorted(samples)]


def of_equal_length(found: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Token samples, zeros (padding, masked) after each up to the longest."""
    longest = max(value.shape[1] for sample in found for value in sample.values())
    return [
        {name: np.pad(value, ((0, 0), (0, longest - value.shape[1]))) for name, value in sample.items()}
        for sample in found
    ]


def accuracy(run: Callable[[Mapping[str, np.ndarray]], np.ndarray], path: str) -> float:
    """Share of the samples whose largest logit is their class."""
    found = np.array([run(sample).argmax() for sample in read(path)])
    return float((found == labels(path)).mean())


def serve(arms: Mapping[str, Callable[[dict[str, Any]], object]]) -> None:
    """Do the job that the command line names; a line on stdout says with which settings.

    It begins on a fresh line, since some leave that of their progress bar open.
    """
    job = json.loads(Path(sys.argv[1]).read_text())
    chosen = arms[job["arm"]]
    chosen(job)
    print("\n" + json.dumps({"settings": " ".join((chosen.__doc__ or "").split())}))
