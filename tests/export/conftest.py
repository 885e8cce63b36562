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
from torch import Tensor, nn

from autocompress.compressing.codes import Codes
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.shape import shape
from autocompress.export import export_model
from autocompress.export.export import codes_for
from autocompress.export.folder import save_integers
from autocompress.export.fresh import Graded
from autocompress.export.products import exact
from autocompress.pipeline import save_weights
from autocompress.plan import Plan
from autocompress.records import Artifact, write_json
from autocompress.runtimes import open_session
from autocompress.tasks.task import Task
from tests.tiny import Chooser, _one_thread, run, table_of  # noqa: F401  (a fixture)


def unpack(packed: NDArray, columns: int) -> NDArray:
    """Codes of bytes, low half first, by plain arithmetic."""
    flat = packed.reshape(packed.shape[0], -1).astype(int)
    return np.stack([flat % 16 - 8, flat // 16 - 8], axis=-1).reshape(packed.shape[0], -1)[:, :columns]


@dataclass(frozen=True)
class Exported:
    """A file with what it was made from."""

    task: Task
    model: nn.Module
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
        return run(simulate(self.model, self.codes), inputs).numpy()

    def deviation(self, inputs: dict[str, Tensor], runtime: str = "onnxruntime") -> float:
        expected = self.twin(inputs)
        return float(np.linalg.norm(self.run(inputs, runtime) - expected) / np.linalg.norm(expected))


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Exported]:
    def make(task: Task, plan: Plan | None = None, runtime: str = "onnxruntime") -> Exported:
        plan = plan or Plan()
        made = quantize(task.model, exact(plan, runtime), table_of(task), task.calibration())
        path = tmp_path / "artifacts" / "model.onnx"
        artifact = export_model(made.model, made.codes, task, path, tmp_path, plan.fingerprint, runtime)
        return Exported(task, made.model, codes_for(made.codes, runtime), path, artifact)

    return make


def keep_candidate(task: Task, plan: Plan, run: Path, runtime: str = "onnxruntime") -> tuple[Graded, Exported]:
    """A run folder with one candidate, as a search leaves it."""
    table = table_of(task)
    small = shape(task.source, plan, table, Chooser(task))
    done = exact(plan, runtime)
    made = quantize(small, done, table, task.calibration())
    folder = run / "artifacts" / plan.fingerprint
    path = folder / "model.onnx"
    artifact = export_model(made.model, made.codes, task, path, run, plan.fingerprint, runtime)
    save_weights(small, folder / "weights.safetensors")
    save_integers(small, made, folder / "integers.safetensors")
    write_json(folder / "plan.json", done.to_json())
    write_json(run / "layers.json", table.to_json())
    query = {name: value.numpy() for name, value in task.test.batch(range(2))[0].items()}
    np.savez(run / "inputs.npz", **query)  # type: ignore[arg-type]
    if hasattr(task.source, "config"):
        task.source.config.architectures = [type(task.source).__name__]
        task.source.config.save_pretrained(run / "processor")
    exported = Exported(task, made.model, codes_for(made.codes, runtime), path, artifact)
    return Graded(run, path, artifact.sha256, runtime, 1), exported
