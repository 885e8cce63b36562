"""One torch thread, and one exporting helper that keeps the task, the codes and the file together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from autocompress.compress.quantize import Codes, quantize, simulate
from autocompress.export import export_model
from autocompress.plan import Plan
from autocompress.records import Artifact
from autocompress.runtimes import open_session
from autocompress.tasks.task import Task
from tests.tiny import _one_thread, run  # noqa: F401  (a fixture)


@dataclass(frozen=True)
class Exported:
    """A file with what it was made from."""

    task: Task
    codes: dict[str, Codes]
    path: Path
    artifact: Artifact

    @property
    def graph(self) -> onnx.GraphProto:
        return onnx.load(self.path).graph

    def arrays(self) -> dict[str, NDArray]:
        return {item.name: numpy_helper.to_array(item) for item in self.graph.initializer}

    def operators(self) -> list[str]:
        return [node.op_type for node in self.graph.node]

    def run(self, inputs: dict[str, Tensor], runtime: str = "onnxruntime") -> NDArray:
        session = open_session(self.path, runtime, 1)
        return session.run({name: value.numpy() for name, value in inputs.items()})[0]

    def twin(self, inputs: dict[str, Tensor]) -> NDArray:
        """What torch says that the integers compute."""
        return run(simulate(self.task.model, self.codes), inputs).numpy()

    def deviation(self, inputs: dict[str, Tensor], runtime: str = "onnxruntime") -> float:
        expected = self.twin(inputs)
        return float(np.linalg.norm(self.run(inputs, runtime) - expected) / np.linalg.norm(expected))


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Exported]:
    def make(task: Task, plan: Plan | None = None, runtime: str = "onnxruntime") -> Exported:
        plan = plan or Plan()
        codes = quantize(task.model, plan, task.calibration())
        path = tmp_path / "artifacts" / "model.onnx"
        artifact = export_model(task.model, codes, task, path, tmp_path, plan.fingerprint, runtime)
        return Exported(task, codes, path, artifact)

    return make
