"""The real text model on real data, where it lies beside the checkout: the documented quality, and what int8 keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not (SHARED / "models" / "minilm-sst2").is_dir(), reason=f"the shared models and data are not at {SHARED}"
)

#: `shared/data/README.md` gives 89.7 % on validation.
DOCUMENTED = 0.897


def test_minilm_keeps_its_quality_through_export_and_int8(tmp_path: Path) -> None:
    from autocompress.compressing.bank import Bank
    from autocompress.distill import TeacherCache
    from autocompress.hardware import load_profile
    from autocompress.measure.latency import Bench
    from autocompress.pipeline import build, score_artifact
    from autocompress.plan import LayerPlan, Plan, Quantize
    from autocompress.survey import survey
    from autocompress.tasks import TaskSource, load_task
    from autocompress.workshop import Workshop, write_workload

    source = TaskSource("text-classification", str(SHARED / "models" / "minilm-sst2"), str(SHARED / "sst2"))
    task = load_task(source, 128)
    profile = load_profile("cpu")
    table = survey(task.source, task.workload_inputs(1, 128))
    assert len(table.blocks) == 6
    shop = Workshop(
        tmp_path,
        task,
        table,
        profile,
        Bank(tmp_path / "bank", task, table),
        TeacherCache(tmp_path / "teacher.npy", task),
        Bench(profile, tmp_path / "inputs.npz", tmp_path / "none.onnx"),
    )
    write_workload(tmp_path / "inputs.npz", task, profile.workload)
    linears = [layer.name for layer in table.layers if layer.kind == "linear"]
    int8 = Plan(layers={name: LayerPlan(quantize=Quantize("int8-dynamic")) for name in linears})
    scores = [score_artifact(build(plan, shop), shop, task.validation) for plan in (Plan(), int8)]
    assert scores[0].value == pytest.approx(DOCUMENTED, abs=0.001)
    assert scores[0].value - scores[1].value < 0.02
