"""One run folder, as it is read: its front, what to pick from it, its report. Needs no torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from autocompress.budgets import Budgets, parse_bytes, parse_seconds, parse_speedup
from autocompress.drop import parse_drop
from autocompress.elsewhere import MEASURED, read_elsewhere
from autocompress.errors import ConfigError, NothingFitsError, near
from autocompress.found import LOSSES, SEARCH, Found, read_found, read_losses
from autocompress.front import Front, front_entries
from autocompress.layers import LayerTable
from autocompress.objectives import Objectives, read_objectives
from autocompress.pick import Picked, write_pick
from autocompress.records import Trial, read_scores, read_trials, write_atomic

if TYPE_CHECKING:
    from autocompress.report.view import RunView


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @staticmethod
    def open(folder: str | Path) -> Run:
        """An existing run; raises `ConfigError` when there is none."""
        path = Path(folder)
        if not (path / "experiment.yaml").is_file():
            raise ConfigError(f"{path}: no run there (it holds no experiment.yaml); autocompress search makes one")
        return Run(path)

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """Everything resolved, as `experiment.yaml` holds it."""
        path = self.folder / "experiment.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as fault:
            raise ConfigError(f"{path}: cannot be read: {fault}") from fault
        if not isinstance(data, dict) or not isinstance(data.get("resolved"), dict):
            raise ConfigError(
                f"{path}: was not written by a search (it holds no `resolved`); move it out of the run folder, or "
                "choose another one with --out"
            )
        return data

    @property
    def trials(self) -> list[Trial]:
        """All evaluations, in the order in which they ended."""
        return read_trials(self.folder / "trials.jsonl")

    @property
    def front(self) -> Front:
        """The front of what was evaluated so far; of a finished run, of its finalists."""
        resolved = self.experiment["resolved"]
        front = Front(
            tuple(self.trials), bool(resolved["maximize"]), float(resolved["points"]), objectives=self.objectives
        )
        return final_front(front, self.folder) if self.state.get("finished") else front

    @property
    def objectives(self) -> Objectives:
        """By which the run's trials are compared."""
        resolved = self.experiment["resolved"]
        found = read_objectives(resolved.get("objectives"))
        return replace(found, fraction=resolved["points"] == 100, allowed=budgets_of(self.experiment).max_drop)

    @property
    def table(self) -> LayerTable:
        """Layers and groups of the model."""
        return LayerTable.from_json(self._json("layers.json"))

    @property
    def state(self) -> dict[str, Any]:
        """``spent_s`` and, at the end, ``finished`` (why the search stopped)."""
        state: dict[str, Any] = self._json("state.json")
        return state

    @property
    def found(self) -> Found:
        """What the search found out beside its candidates; nothing in old runs."""
        return read_found(self.folder / SEARCH)

    def _json(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            return {}
        data: Any = json.loads(path.read_text())
        return data

    def entries(self, absolute: bool = False) -> list[dict[str, Any]]:
        """The rows of ``autocompress front --json``; artefacts are relative to the run folder, or absolute."""
        rows = front_entries(self.front)
        for row in rows if absolute else ():
            for key in ("artifact", "artifact_dense"):
                row[key] = row[key] and str((self.folder / row[key]).resolve())
        return rows

    def pick(
        self,
        out: str | Path,
        max_latency: str | float | None = None,
        min_speedup: str | float | None = None,
        max_drop: str | None = None,
        max_size: str | int | None = None,
        fingerprint: str | None = None,
        *,
        formats: Sequence[str] = (),
        max_memory: str | int | None = None,
    ) -> Picked:
        """Write the model that fits into a folder of its own; chosen on validation, see `Front.choose`.

        Args:
            out: the folder to write.
            max_latency: such as "5ms", or seconds.
            min_speedup: such as "2x", against the fastest dense fp32.
            max_drop: such as "1pt" or "1%".
            max_size: of the file, such as "5MB".
            fingerprint: of one candidate, instead of budgets.
            formats: files to write, of `pick.FORMATS`; the graded one where left out.
            max_memory: of a process that loads the file and runs one query, such as "200MB"; what a run knows of it.

        Raises:
            NothingFitsError: with the nearest miss and what it lacks.
        """
        points = self.experiment["resolved"]["points"]
        budgets = make_budgets(max_latency, min_speedup, max_drop, points, max_size, max_memory)
        if not budgets and not fingerprint:
            raise ConfigError(
                "say what to pick: --max-latency, --min-speedup, --max-drop, --max-size, --max-memory or --fingerprint"
            )
        trial = self._by_fingerprint(fingerprint) if fingerprint else self.front.choose(budgets)
        return write_pick(
            trial, self.front, self.folder, Path(out), self.experiment, list(budgets.sentences()), formats
        )

    def _by_fingerprint(self, fingerprint: str) -> Trial:
        measured = {t.fingerprint: t for t in self.front.measured}
        found = [t for name, t in measured.items() if name.startswith(fingerprint)]
        if len(found) != 1:
            problem = "matches several measured candidates" if found else "is no measured candidate of this run"
            raise ConfigError(f"--fingerprint {fingerprint!r} {problem}{near(fingerprint, measured)}")
        return found[0]

    def view(self) -> RunView:
        """The run as a report sees it."""
        from autocompress.report.view import RunView

        front, resolved = self.front, self.experiment["resolved"]
        dense = front.dense
        budgets = budgets_of(self.experiment)
        nearest = answer = None
        if budgets and front.points:
            with contextlib.suppress(NothingFitsError):
                answer = front.choose(budgets).fingerprint
        if not front.points and dense is not None:
            miss = front.nearest_miss(budgets)
            nearest = (miss.fingerprint, miss.error or "it is over the budgets")
        return RunView(
            name=self.folder.resolve().name,
            trials=front.trials,
            front=tuple(t.fingerprint for t in front.points),
            table=self.table,
            experiment=self.experiment,
            environment=self._json("environment.json"),
            probe=self._json("probe.json"),
            metric=resolved["metric"],
            maximize=front.maximize,
            quality_dense=front.quality(dense) if dense else float("nan"),
            quality_dense_test=dense.quality_test if dense else None,
            budgets=tuple(budgets.sentences()),
            status=self.status(),
            folder=str(self.folder),
            nearest_miss=nearest,
            elsewhere=read_elsewhere(self.folder / MEASURED),
            sensitivities=tuple(self._json("sensitivity.json")),
            part=front.part,
            divided=_divided(resolved),
            ties=front.ties,
            ungraded=tuple(t.fingerprint for t in front.ungraded(budgets)),
            objectives=front.objectives,
            answer=answer,
            stages=tuple(self.state.get("stages", ())),
            found=self.found,
            losses=read_losses(self.folder / LOSSES),
        )

    def status(self) -> str:
        """One sentence on how far the run is."""
        trials, state = self.trials, self.state
        failed = sum(t.state == "FAILED" for t in trials)
        count = f"{len(trials)} candidates in {state.get('spent_s', 0.0):.0f} s"
        count += f", {failed} of them failed" if failed else ""
        finished = state.get("finished")
        return f"finished ({finished}): {count}" if finished else f"not finished: {count}; the same command resumes it"

    def report(self) -> Path:
        """Write `report.html` and return its path."""
        from autocompress.report.page import render_report

        path = self.folder / "report.html"
        write_atomic(path, render_report(self.view()))
        return path

    def overhead(self) -> float:
        """Share of the search's wall-clock that was spent on none of the stages of a candidate."""
        state = self.state
        return float(state["controller_s"] / state["search_s"]) if state.get("search_s") else 0.0


def final_front(front: Front, folder: Path) -> Front:
    """The front of a search that is over, with what the run folder keeps of its finalists' samples."""
    over = replace(front, final=True)
    return replace(over, scores=read_scores(folder, over.finalists))


def _divided(resolved: Mapping[str, Any]) -> bool:
    """Whether validation has two parts to tell apart; old runs have none, small splits twice the same."""
    parts = resolved.get("parts")
    return parts is not None and sum(parts.values()) <= resolved["samples"]["validation"]


def make_budgets(
    max_latency: str | float | None = None,
    min_speedup: str | float | None = None,
    max_drop: str | None = None,
    points: float = 100.0,
    max_size: str | int | None = None,
    max_memory: str | int | None = None,
) -> Budgets:
    """Budgets from what a user writes; raises `ConfigError` naming the flag. `points` per unit of the metric."""
    if isinstance(max_latency, int | float):
        if not max_latency > 0:
            raise ConfigError(f"--max-latency must be a time above 0 such as 5ms or 0.005, but got {max_latency:g}")
        latency: float | None = max_latency
    else:
        latency = None if max_latency is None else parse_seconds(max_latency, "--max-latency")
    return Budgets(
        max_latency_s=latency,
        min_speedup=None if min_speedup is None else parse_speedup(str(min_speedup)),
        max_drop=None if max_drop is None else parse_drop(max_drop, points=points),
        max_size_bytes=None if max_size is None else parse_bytes(str(max_size), "--max-size", bare="b"),
        max_memory_bytes=None if max_memory is None else parse_bytes(str(max_memory), "--max-memory", bare="b"),
    )


def budgets_of(experiment: Mapping[str, Any]) -> Budgets:
    """What an experiment asks for, by its settings and what was resolved of it."""
    return make_budgets(
        experiment.get("max_latency"),
        experiment.get("min_speedup"),
        experiment.get("max_drop"),
        experiment["resolved"]["points"],
        experiment.get("max_size"),
        experiment.get("max_memory"),
    )
