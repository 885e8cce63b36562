"""A latency table taken along: one file that was recorded on a device, and a bench that answers from it elsewhere.

Needs no torch. `RecordedBench` has the face of `measure.latency.Bench`; its figures are marked "recorded".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import AutocompressError, MeasureError, ProfileError
from autocompress.hardware import HardwareProfile, Timing
from autocompress.layers import LayerTable
from autocompress.measure.dense import DenseSetting
from autocompress.measure.latency import Contestant, Setting
from autocompress.measure.rounds import Rounds
from autocompress.measure.unmeasured import latency_of, one_round
from autocompress.plan import Plan, plan_from_json
from autocompress.records import Latency, Tier, write_json
from autocompress.tables.table import LatencyTable


@dataclass(frozen=True)
class Recorded:
    """What a device's file holds.

    Attributes:
        profile: with which it was recorded, resolved.
        environment: of the device.
        layers: of the dense model.
        table: latencies.
        dense: the dense model in every setting of the device, fastest first.
    """

    profile: HardwareProfile
    environment: Mapping[str, Any]
    layers: LayerTable
    table: LatencyTable
    dense: tuple[DenseSetting, ...]

    def save(self, path: Path) -> None:
        """Write the file; raises `StorageError` where the disk refuses."""
        write_json(
            path,
            {
                "profile": self.profile.model_dump(mode="json"),
                "environment": dict(self.environment),
                "layers": self.layers.to_json(),
                "table": self.table.to_json(),
                "dense": [asdict(setting) for setting in self.dense],
            },
        )


def load_recorded(path: str | Path) -> Recorded:
    """Read a device's file.

    Raises:
        ProfileError: it is not there, or not what `record` writes.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return Recorded(
            HardwareProfile.model_validate(data["profile"]),
            data["environment"],
            LayerTable.from_json(data["layers"]),
            LatencyTable.from_json(data["table"]),
            tuple(DenseSetting(**setting) for setting in data["dense"]),
        )
    except OSError as fault:
        raise ProfileError(f"table: {path}: cannot be read ({fault.strerror}); autocompress record writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError, AutocompressError) as fault:
        raise ProfileError(
            f"table: {path}: not written by autocompress record ({type(fault).__name__}: {fault})"
        ) from None


class RecordedBench:
    """What a search asks of `measure.latency.Bench`, answered from a recorded table.

    A file's plan is read from the ``plan.json`` beside it.

    Args:
        profile: with ``latencies: recorded``; its `table` names the device's file.
        inputs: .npz file with the queries of the workload; kept for whoever asks.
        dense: the dense artefact.
        layers: of the model that is searched; must be the one that was recorded.

    Raises:
        ProfileError: the profile names no table, or no whole one.
        MeasureError: the table is another model's.
    """

    def __init__(self, profile: HardwareProfile, inputs: Path, dense: Path, layers: LayerTable) -> None:
        if profile.table is None:
            raise ProfileError(f"hardware profile {profile.name!r}: table must name a file of autocompress record")
        self.recorded = load_recorded(profile.table)
        try:
            self.recorded.table.check_model(layers)
        except MeasureError as fault:
            raise MeasureError(f"{profile.table}: {fault}") from None
        self.profile = profile
        self.inputs = inputs
        self.layers = layers
        self.setting = Setting(profile.runtime, profile.threads, profile.device)
        self.dense = Contestant("dense", dense, self.setting)
        fastest = self.recorded.dense[0]
        self.best_dense = Setting(fastest.runtime, fastest.threads, profile.device)

    def __enter__(self) -> RecordedBench:
        """The bench itself."""
        return self

    def __exit__(self, *_fault: object) -> None:
        """Nothing runs, so nothing ends."""

    def close(self) -> None:
        """Nothing runs, so nothing ends."""

    def load(self, contestant: Contestant) -> float:
        """Recorded seconds per query.

        Raises:
            MeasureError: the contestant has another setting than the table, or no plan lies beside its file.
        """
        if contestant.setting != self.setting:
            raise MeasureError(f"hardware profile {self.profile.name!r} was recorded for {self.setting} alone")
        return self._seconds(contestant.path)

    def race(self, contestants: Sequence[Contestant], timing: Timing, enough_queries: int = 0) -> Rounds:
        """One round of recorded seconds, in the form of a measured one; nothing is timed."""
        return one_round(contestants, self.load)

    def table_ratio(self, path: Path, inputs: Path) -> float:
        """Refused: what is not in the table cannot be timed here.

        Raises:
            MeasureError: always.
        """
        raise MeasureError(f"hardware profile {self.profile.name!r} is recorded: nothing can be timed on it here")

    def outputs(self, _path: Path) -> None:
        """None: nothing runs there."""
        return

    def measure(self, path: Path, tier: Tier = "search", *, rivals: Sequence[float] = ()) -> Latency:
        """Latency of an artefact as the table has it; its intervals are as wide as the table's mean error.

        Args:
            path: the artefact, with its plan beside it.
            tier: is written down; every tier reads the same table.
            rivals: change nothing: there is no interval to narrow.

        Raises:
            MeasureError: no plan lies beside the file, or the table holds nothing of what it asks for.
        """
        seconds, dense = self._seconds(path), self.seconds(Plan())
        fastest = min(setting.ratio for setting in self.recorded.dense)
        ratio, best = seconds / dense, seconds / dense / fastest
        doubt = self.recorded.table.mape
        doubt = 0.0 if seconds == dense else doubt if math.isfinite(doubt) else 1.0
        return latency_of(
            self.profile,
            "recorded",
            tier,
            seconds,
            (ratio, best),
            doubt=doubt,
            warning=f"from a table recorded on {self._device()}, not measured; {self.recorded.table.words()}",
        )

    def _device(self) -> str:
        machine = self.recorded.environment.get("machine", {})
        return str(machine.get("cpu") or self.profile.name)

    def seconds(self, plan: Plan) -> float:
        """Recorded seconds of a plan; raises `MeasureError` as the table does."""
        return self.recorded.table.seconds(plan, self.layers)

    def _seconds(self, path: Path) -> float:
        return self.seconds(self._plan(path))

    def _plan(self, path: Path) -> Plan:
        beside = path.with_name("plan.json")
        try:
            return plan_from_json(json.loads(beside.read_text(encoding="utf-8")), str(beside))
        except (OSError, json.JSONDecodeError) as fault:
            raise MeasureError(
                f"{path}: a recorded table needs the plan that made the file, and {beside} cannot be read: {fault}"
            ) from None
