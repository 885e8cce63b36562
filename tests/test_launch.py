"""A whole small search through the public API, and what its folder says afterwards."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

import autocompress
from autocompress.errors import BudgetError, ConfigError, NothingFitsError, RunMismatchError, SpaceError
from autocompress.export.products import exact
from autocompress.plan import plan_from_json
from autocompress.records import read_trials

ROOT = Path(__file__).resolve().parent.parent
TRIALS = 7


def example_task() -> autocompress.Task:
    spec = importlib.util.spec_from_file_location("my_task", ROOT / "examples" / "my_task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_task()


@pytest.fixture(scope="module")
def task() -> autocompress.Task:
    return example_task()


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bits and rank per layer with a short recovery."""
    path = tmp_path_factory.mktemp("space") / "short.yaml"
    rule = "{match: '*', precision: [fp32, int8-dynamic, int8], rank: [1.0, 0.25]}"
    path.write_text(f"layers: [{rule}]\ndistill: {{steps: [0, 10]}}\n")
    return path


@pytest.fixture(scope="module")
def run(task: autocompress.Task, tmp_path_factory: pytest.TempPathFactory, space: Path) -> autocompress.Run:
    out = tmp_path_factory.mktemp("runs") / "mlp"
    return autocompress.search(task, out=out, space=space, hardware="cpu-1-thread", budget="5m", max_trials=TRIALS)


def hits(run: autocompress.Run, trial: autocompress.Trial, split: autocompress.Examples) -> np.ndarray:
    """Which samples ONNX Runtime gets right from a trial's file: ``(n,)`` of 0 and 1."""
    assert trial.artifact is not None
    session = onnxruntime.InferenceSession(str(run.folder / trial.artifact.path))
    logits = session.run(None, {"input": split.inputs["input"].numpy()})[0]
    return (logits.argmax(-1) == split.targets.numpy()).astype(float)


def test_search_evaluates_what_it_was_allowed(run: autocompress.Run) -> None:
    assert len(run.trials) == TRIALS
    assert [t.number for t in run.trials] == list(range(TRIALS))
    assert len({t.fingerprint for t in run.trials}) == TRIALS
    assert run.trials[0].origin == "dense"
    assert "uniform-int8" in {t.origin for t in run.trials}


def test_every_measured_number_comes_from_its_own_file(run: autocompress.Run) -> None:
    for trial in run.trials:
        assert trial.state == "DONE", trial.error
        assert trial.latency is not None
        assert trial.artifact is not None
        assert trial.latency.source == "measured"
        assert trial.latency.blocks >= 7
        assert (run.folder / trial.artifact.path).stat().st_size == trial.artifact.size_bytes
        assert set(trial.seconds) >= {"compress", "quantize", "export", "measure", "score"}


def test_dense_against_itself_is_about_one(run: autocompress.Run) -> None:
    """The same file timed in turn with itself: the ratio's truth is 1."""
    dense = run.front.dense
    assert dense is not None
    assert dense.latency is not None
    assert dense.latency.ratio == pytest.approx(1.0, abs=0.15)


def test_quality_is_of_the_artefact(run: autocompress.Run, task: autocompress.Task) -> None:
    """Oracle: ONNX Runtime on the file, by hand."""
    for trial in run.front.points:
        assert trial.artifact is not None
        parts, validation = task.parts, hits(run, trial, task.validation)
        assert validation[parts.select].mean() == pytest.approx(trial.quality, abs=0.01)
        assert validation[parts.confirm].mean() == pytest.approx(trial.quality_confirm, abs=0.01)
        assert hits(run, trial, task.test).mean() == pytest.approx(trial.quality_test, abs=0.01)


def test_front_is_graded_on_test_and_timed_again(run: autocompress.Run) -> None:
    assert run.front.points
    for trial in (*run.front.points, *run.front.references):
        assert trial.quality_test is not None
        assert trial.latency is not None
        assert trial.latency.tier == "report"


def test_front_json_has_the_promised_keys(run: autocompress.Run) -> None:
    keys = {
        "fingerprint", "latency_s", "latency_source", "latency_ratio", "latency_ratio_best_dense",
        "latency_ratio_best_dense_low", "latency_ratio_best_dense_high", "quality_validation", "quality_test",
        "quality_dense_test", "drop_points_test", "size_bytes", "size_bytes_dense", "artifact", "artifact_dense",
        "plan", "validation_part", "quality_select", "quality_confirm", "drop_points_validation", "tied_with",
    }  # fmt: skip
    entries = run.entries()
    assert entries == json.loads((run.folder / "front.json").read_text())
    for entry in entries:
        assert set(entry) >= keys
        assert (run.folder / entry["artifact"]).is_file()
        assert (run.folder / entry["artifact_dense"]).stat().st_size == entry["size_bytes_dense"]


def test_the_front_of_a_finished_run_is_that_of_the_finalists_on_confirm(run: autocompress.Run) -> None:
    """Oracle: every pair of finalists compared by hand."""
    finalists = [t for t in run.trials if t.quality_test is not None]

    def beats(one: autocompress.Trial, other: autocompress.Trial) -> bool:
        figures = [(-t.latency.ratio_best_dense, t.quality_confirm) for t in (one, other)]  # type: ignore[union-attr]
        return figures[0] != figures[1] and all(a >= b for a, b in zip(*figures, strict=True))  # type: ignore[operator]

    expected = {t.fingerprint for t in finalists if not any(beats(other, t) for other in finalists)}
    entries = {e["fingerprint"]: e for e in run.entries() if e["on_front"]}
    assert set(entries) == expected
    dense = run.front.dense
    assert dense is not None
    for trial in finalists:
        if trial.fingerprint in entries:
            entry = entries[trial.fingerprint]
            assert entry["validation_part"] == "confirm"
            assert entry["quality_validation"] == entry["quality_confirm"] == trial.quality_confirm
            assert entry["quality_select"] == trial.quality
            lost = 100 * (dense.quality_confirm - trial.quality_confirm)  # type: ignore[operator]
            assert entry["drop_points_validation"] == pytest.approx(lost)


def test_ties_are_those_of_the_files_own_hits(run: autocompress.Run, task: autocompress.Task) -> None:
    """Oracle: McNemar's comparison of ONNX Runtime's hits on the confirm part, by hand."""
    points = run.front.points
    for faster, slower in itertools.pairwise(points):
        ours, theirs = (hits(run, t, task.validation)[task.parts.confirm] for t in (slower, faster))
        won, lost, n = ((ours > theirs).sum(), (ours < theirs).sum(), len(ours))
        error = np.sqrt(((won + lost) / n - ((won - lost) / n) ** 2) / (n - 1))
        tied = (won - lost) / n <= 1.96 * error
        assert run.front.ties.get(slower.fingerprint, ()) == ((faster.fingerprint,) if tied else ())


def test_best_dense_ratio_is_of_the_fastest_setting(run: autocompress.Run) -> None:
    probe = json.loads((run.folder / "probe.json").read_text())
    assert probe["best_dense"]["ratio"] == min(item["ratio"] for item in probe["dense"])
    assert {item["runtime"] for item in probe["dense"]} >= {"onnxruntime"}


def test_the_same_call_again_finds_itself_done(run: autocompress.Run, task: autocompress.Task, space: Path) -> None:
    before, entries = (run.folder / "trials.jsonl").read_bytes(), run.entries()
    again = autocompress.search(
        task, out=run.folder, space=space, hardware="cpu-1-thread", budget="5m", max_trials=TRIALS
    )
    assert (run.folder / "trials.jsonl").read_bytes() == before
    assert again.entries() == entries == json.loads((run.folder / "front.json").read_text())


def test_more_trials_continue_the_run(run: autocompress.Run, task: autocompress.Task, space: Path) -> None:
    old = {t.number: t.fingerprint for t in run.trials}
    again = autocompress.search(
        task, out=run.folder, space=space, hardware="cpu-1-thread", budget="5m", max_trials=TRIALS + 1
    )
    new = {t.number: t.fingerprint for t in again.trials}
    assert len(new) == TRIALS + 1
    assert {number: new[number] for number in old} == old
    assert again.front.part == "confirm"
    assert set(again.front.scores) == {t.fingerprint for t in again.trials if t.quality_test is not None}


def test_a_run_from_before_there_were_parts_is_shown_but_not_continued(
    run: autocompress.Run, task: autocompress.Task, tmp_path: Path, space: Path
) -> None:
    """Oracle: the front by `quality` of lines without the new fields."""
    old = tmp_path / "old"
    shutil.copytree(run.folder, old)
    settings = yaml.safe_load((old / "experiment.yaml").read_text())
    del settings["resolved"]["parts"]
    (old / "experiment.yaml").write_text(yaml.safe_dump(settings))
    lines = [json.loads(line) for line in (old / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        del line["quality_confirm"], line["quality_confirm_stderr"]
    (old / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    front = autocompress.Run.open(old).front
    qualities = [t.quality for t in front.points]
    assert qualities == sorted(qualities)  # type: ignore[type-var]
    assert (front.part, front.ties) == ("select", {})
    assert {e["validation_part"] for e in autocompress.Run.open(old).entries()} == {"all"}
    assert "Confirm" not in autocompress.Run.open(old).report().read_text().split("<footer>")[0]
    with pytest.raises(RunMismatchError, match=r"parts of validation: None there, .*'confirm': 200"):
        autocompress.search(task, out=old, space=space, hardware="cpu-1-thread", budget="5m", max_trials=TRIALS)


def test_two_searches_never_share_a_folder(run: autocompress.Run, task: autocompress.Task) -> None:
    import fcntl

    with (run.folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process searches"):
            autocompress.search(task, out=run.folder, hardware="cpu-1-thread", budget="5m")


def test_another_experiment_is_refused_with_what_differs(run: autocompress.Run, task: autocompress.Task) -> None:
    with pytest.raises(RunMismatchError, match=r"seed: 0 there, 3 now") as fault:
        autocompress.search(task, out=run.folder, hardware="cpu", seed=3)
    assert "hardware profile: 'cpu-1-thread' there, 'cpu' now" in str(fault.value)


def test_another_model_is_refused(run: autocompress.Run) -> None:
    changed = example_task()
    changed.model[0].weight.data[0, 0] += 1.0
    with pytest.raises(RunMismatchError, match="model or data"):
        autocompress.search(changed, out=run.folder, hardware="cpu-1-thread")


def test_a_folder_of_strangers_is_refused(task: autocompress.Task, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex but no run"):
        autocompress.search(task, out=tmp_path)


def test_an_impossible_latency_is_refused_with_the_reachable_range(
    task: autocompress.Task, tmp_path: Path, space: Path
) -> None:
    with pytest.raises(BudgetError, match=r"--max-latency 1e-06 ms .* reachable here: .* ms to .* ms"):
        autocompress.search(
            task, out=tmp_path / "run", space=space, hardware="cpu-1-thread", max_latency=1e-9, max_trials=1
        )
    again = autocompress.search(
        task, out=tmp_path / "run", space=space, hardware="cpu-1-thread", max_latency="1s", max_trials=1
    )
    assert again.experiment["max_latency"] == "1s", "nothing was evaluated yet, so the budget may be corrected"


def test_a_kill_while_the_folder_is_set_up_does_not_close_it(
    task: autocompress.Task, tmp_path: Path, space: Path
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    for name in ("layers.json", "environment.json", ".layers.json.x1y2"):
        (root / name).write_text("{")
    run = autocompress.search(task, out=root, space=space, hardware="cpu-1-thread", max_trials=1)
    assert run.front.dense is not None


def test_a_metric_that_gives_no_number_fails_the_candidate(tmp_path: Path, space: Path) -> None:
    import dataclasses

    broken = dataclasses.replace(
        example_task(), metric=autocompress.Metric("pearson", True, lambda _logits, _targets: float("nan"))
    )
    with pytest.raises(autocompress.AutocompressError, match=r"dense model itself .* pearson of .* is nan"):
        autocompress.search(broken, out=tmp_path / "run", space=space, hardware="cpu-1-thread", max_trials=1)


def test_a_space_without_a_choice_is_refused_before_any_work(task: autocompress.Task, tmp_path: Path) -> None:
    space = tmp_path / "empty.yaml"
    space.write_text("layers: [{match: '*', precision: [fp32]}]\n")
    with pytest.raises(SpaceError, match="leaves nothing to choose"):
        autocompress.search(task, out=tmp_path / "run", space=space)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "--budget must be above 0, but got 0"),
        ({"max_trials": 0}, "--max-trials must be above 0, but got 0"),
        ({"bank_limit": -1}, "--bank-limit must be above 0, but got -1"),
        ({"max_latency": 0.0}, "--max-latency must be a time above 0 such as 5ms or 0.005, but got 0"),
        ({"min_speedup": 0}, "--min-speedup must be a factor of 1 or more such as 2x, but got '0'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_numbers_that_mean_nothing_are_refused_before_any_work(
    task: autocompress.Task, tmp_path: Path, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        autocompress.search(task, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_size_that_no_choice_of_bits_keeps_is_refused_before_any_work(
    task: autocompress.Task, tmp_path: Path
) -> None:
    """int8 weights are a quarter of fp32; scales and float biases come on top."""
    space = tmp_path / "small.yaml"
    space.write_text("strategy: solve\nsolve: {max_size: 0.2}\nlayers: [{precision: [fp32, int8]}]\n")
    with pytest.raises(SpaceError, match=r"small\.yaml: solve\.max_size: 0\.2 .* is 0\.256 .*; give 0\.26 or more"):
        autocompress.search(task, out=tmp_path / "run", space=space)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": "latency,quality,sise"}, r"--objectives: 'sise' is unknown; did you mean 'size'\?"),
        ({"objectives": ["latency", "size"]}, "--objectives latency,size: lacks quality, which every search needs"),
        ({"max_memory": "much"}, "--max-memory must be a size above 0 such as 500MB, 2GB or 1.5GiB, but got 'much'"),
        (
            {"objectives": "latency,quality,memory", "hardware": "raspberry-pi-5"},
            "--objectives latency,quality,memory: peak memory is not known on hardware profile 'raspberry-pi-5' "
            r"\(its latencies are analytic, .*size stands for it there: --objectives latency,quality,size or",
        ),
        ({"max_memory": "50MB", "hardware": "raspberry-pi-5"}, "--max-memory 50MB: peak memory is not known on"),
    ],
    ids=["unknown", "lacking", "no_size", "memory_of_a_chip", "budget_of_a_chip"],
)
def test_objectives_that_mean_nothing_are_refused_before_any_work(
    task: autocompress.Task, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        autocompress.search(task, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_quality_without_a_direction_is_refused(task: autocompress.Task, tmp_path: Path) -> None:
    aimless = dataclasses.replace(task, metric=dataclasses.replace(task.metric, maximize=None))
    with pytest.raises(ConfigError, match=r"gives quality no direction: maximize is None, but must be True \(more"):
        autocompress.search(aimless, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks alone, without recovery."""
    path = tmp_path_factory.mktemp("space") / "ranks.yaml"
    path.write_text("layers: [{match: '*', rank: [1.0, 0.5, 0.25]}]\ndistill: {steps: [0]}\n")
    return path


def test_three_objectives_are_searched_kept_and_held_to(task: autocompress.Task, tmp_path: Path, ranks: Path) -> None:
    """Oracle: domination by ratio, quality and bytes, worked out plainly; a resumed run with others is refused."""
    asked = {"space": ranks, "hardware": "raspberry-pi-5", "budget": "3m", "max_trials": 5}
    run = autocompress.search(task, out=tmp_path / "run", objectives="latency,quality,size", **asked)
    assert run.objectives.names == ("latency", "quality", "size")
    figures = {
        t.fingerprint: (t.latency.ratio_best_dense, -t.quality_confirm, t.artifact.size_bytes)
        for t in run.front.judged
        if t.latency and t.quality_confirm is not None and t.artifact
    }
    dominated = {
        ours
        for (ours, mine), theirs in itertools.product(figures.items(), figures.values())
        if mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))
    }
    assert {t.fingerprint for t in run.front.points} == set(figures) - dominated
    assert "File size and quality" in run.report().read_text()
    with pytest.raises(RunMismatchError, match="objectives: latency,quality,size there, latency,quality now"):
        autocompress.search(task, out=tmp_path / "run", **{**asked, "max_trials": 6})


def test_memory_is_measured_where_it_is_an_objective(task: autocompress.Task, tmp_path: Path, ranks: Path) -> None:
    """Oracle: every candidate has a peak; what is picked keeps the budget by it, and nothing runs in 1 MB."""
    run = autocompress.search(
        task, out=tmp_path / "run", space=ranks, hardware="cpu-1-thread", budget="3m", max_trials=3,
        objectives="latency,quality,memory", max_memory="4GB",
    )  # fmt: skip
    peaks = {t.fingerprint: t.latency.peak_memory_bytes for t in run.trials if t.latency}
    assert len(peaks) == 3
    assert all(peak is not None and peak > 10_000_000 for peak in peaks.values())
    assert {e["fingerprint"]: e["peak_memory_bytes"] for e in run.entries()}.items() <= peaks.items()
    assert "Peak memory and quality" in run.report().read_text()
    picked = run.pick(tmp_path / "picked", max_memory="4GB")
    assert picked.figures["peak_memory_bytes"] == peaks[picked.figures["fingerprint"]]
    with pytest.raises(NothingFitsError, match=r"its peak memory is [0-9.]+ MB, 1 MB allowed"):
        run.pick(tmp_path / "none", max_memory="1MB")


def test_budgets_mark_trials_and_say_what_they_lack(task: autocompress.Task, tmp_path: Path, space: Path) -> None:
    run = autocompress.search(
        task, out=tmp_path / "run", space=space, hardware="cpu-1-thread", budget="3m", max_drop="0.01pt", max_trials=5
    )
    over = [t for t in run.trials if t.state == "INFEASIBLE"]
    dense = run.front.dense
    assert dense is not None
    for trial in run.trials:
        assert trial.quality is not None
        assert dense.quality is not None
        assert (trial.state == "INFEASIBLE") == (dense.quality - trial.quality > 0.0001)
    assert all("0.01 points allowed" in t.error for t in over)


def test_pick_writes_a_folder_whose_snippet_runs_alone(run: autocompress.Run, tmp_path: Path) -> None:
    picked = run.pick(tmp_path / "picked", max_drop="50pt")
    names = {item.name for item in picked.folder.iterdir()}
    assert names >= {"model.onnx", "weights.safetensors", "plan.json", "README.md", "card.json"}
    card = (picked.folder / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    assert len(snippet.splitlines()) == 5
    ready = snippet.replace("inputs = ...", "inputs = {'input': numpy.zeros((1, 64), 'float32')}  #")
    done = subprocess.run([sys.executable, "-c", ready], cwd=picked.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")


def test_picked_model_loads_through_the_api(run: autocompress.Run, tmp_path: Path) -> None:
    picked = run.pick(tmp_path / "picked", min_speedup="1x")
    logits = picked.load().run({"input": np.zeros((3, 64), dtype=np.float32)})[0]
    assert logits.shape == (3, 10)
    plan = json.loads((picked.folder / "plan.json").read_text())
    assert plan == exact(plan_from_json(picked.figures["plan"], "figures"), "onnxruntime").to_json()


def test_picked_weights_rebuild_the_torch_model(run: autocompress.Run, task: autocompress.Task, tmp_path: Path) -> None:
    """Oracle: for a plan without integers, the rebuilt torch model and the ONNX file are the same function."""
    import safetensors.torch
    import torch

    from autocompress.compressing.shape import restore

    dense = run.front.dense
    assert dense is not None
    picked = run.pick(tmp_path / "picked", fingerprint=dense.fingerprint)
    weights = safetensors.torch.load_file(picked.folder / "weights.safetensors")
    rebuilt = restore(task.model, dense.plan, run.table, weights)
    inputs = torch.rand(4, 64)
    with torch.inference_mode():
        expected = rebuilt(input=inputs).numpy()
    assert np.allclose(picked.load().run({"input": inputs.numpy()})[0], expected, atol=1e-4)


def test_nothing_fits_names_the_nearest_miss(run: autocompress.Run, tmp_path: Path) -> None:
    with pytest.raises(NothingFitsError, match=r"the nearest is [0-9a-f]{16} .* 1000x asked") as fault:
        run.pick(tmp_path / "picked", min_speedup="1000x")
    assert fault.value.exit_code == 3
    assert not (tmp_path / "picked").exists()


def test_experiment_yaml_says_what_would_repeat_the_run(run: autocompress.Run) -> None:
    data = yaml.safe_load((run.folder / "experiment.yaml").read_text())
    assert data["hardware"] == "cpu-1-thread"
    assert data["resolved"]["samples"] == {"train": 1000, "validation": 400, "test": 397}
    assert data["resolved"]["parts"] == {"select": 200, "confirm": 200}
    assert data["resolved"]["space"]["name"] == "short"


def test_trials_file_is_read_back_as_it_was_written(run: autocompress.Run) -> None:
    trials = read_trials(run.folder / "trials.jsonl")
    assert [t.to_json() for t in trials] == [t.to_json() for t in run.trials]


def test_report_is_written_and_names_the_run(run: autocompress.Run) -> None:
    page = run.report().read_text()
    assert run.folder.name in page
    assert all(trial.fingerprint in page for trial in run.trials)


def test_settings_given_as_numbers_are_written_as_a_user_would(
    task: autocompress.Task, tmp_path: Path, space: Path
) -> None:
    """So that the run's own file repeats it, and the same in other words is the same run."""
    from autocompress.experiment import load_experiment

    given = {"space": space, "hardware": "cpu-1-thread", "max_trials": 1}
    run = autocompress.search(
        task,
        out=tmp_path / "run",
        max_latency=1.0,
        min_speedup=1,
        max_size=50_000_000,
        bank_limit=2_000_000_000,
        **given,
    )
    settings = load_experiment(run.folder / "experiment.yaml", {})
    asked = settings.max_latency, settings.min_speedup, settings.max_size, settings.bank_limit
    assert asked == ("1s", "1x", "50000000B", "2000000000B")
    again = {"max_latency": "1000ms", "min_speedup": "1", "max_size": "50MB", "bank_limit": "2GB"}
    autocompress.search(task, out=run.folder, **again, **given)
    with pytest.raises(RunMismatchError, match="max_size: '50000000B' there, '51MB' now"):
        autocompress.search(task, out=run.folder, **{**again, "max_size": "51MB"}, **given)


def test_a_size_that_nothing_takes_is_refused_with_the_reachable_range(
    task: autocompress.Task, tmp_path: Path, space: Path
) -> None:
    with pytest.raises(
        BudgetError, match=r"--max-size 0\.001 MB .* reachable here: [0-9.]+ MB .* to [0-9.]+ MB \(dense"
    ):
        autocompress.search(
            task, out=tmp_path / "run", space=space, hardware="cpu-1-thread", max_size="1kB", max_trials=1
        )


@pytest.mark.parametrize(
    "text", ["task: digits\n", "- a list\n", "task: [\n"], ids=["no run's", "no mapping", "broken"]
)
def test_an_experiment_that_no_search_wrote_is_named(task: autocompress.Task, tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment.yaml").write_text(text)
    for use in (lambda: autocompress.search(task, out=tmp_path), lambda: autocompress.Run.open(tmp_path).front):
        with pytest.raises(ConfigError, match=r"experiment\.yaml: (was not written by a search|cannot be read)"):
            use()


def test_shapes_are_timed_after_a_budget_was_corrected(
    task: autocompress.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal comes after the probe is written, and before layer shapes are timed."""
    from autocompress import launch

    fresh: list[bool] = []
    timed = launch._shapes
    monkeypatch.setattr(launch, "_shapes", lambda *given: (fresh.append(given[-1]), timed(*given))[1])
    given = {"out": tmp_path / "run", "hardware": "cpu-1-thread", "max_trials": 1, "space": "bits"}
    with pytest.raises(BudgetError):
        autocompress.search(task, max_latency=1e-9, **given)
    autocompress.search(task, max_latency=1.0, **given)
    autocompress.search(task, max_latency=1.0, **{**given, "max_trials": 2})
    assert fresh == [True, False]


def test_a_resumed_search_compares_with_dense_on_the_same_device(tmp_path: Path) -> None:
    """The probe's file says runtime and threads; on a GPU, dense on the processor would make everything fast."""
    from types import SimpleNamespace

    from autocompress import launch
    from autocompress.measure.dense import DenseSetting
    from autocompress.records import write_json
    from autocompress.searching.probe import Probe
    from autocompress.searching.status import Silent

    probe = Probe((DenseSetting("onnxruntime", 1, 0.01, 1.0),), (), 0.001, 0.1, 0.01)
    write_json(tmp_path / "probe.json", probe.to_json())
    bench = SimpleNamespace(dense=SimpleNamespace(path=tmp_path / "probe.json"), best_dense=None)
    shop = SimpleNamespace(root=tmp_path, profile=SimpleNamespace(device="cuda"), bench=bench)
    assert launch._probe(shop, None, Silent()) == probe
    assert str(bench.best_dense) == "onnxruntime on cuda"
