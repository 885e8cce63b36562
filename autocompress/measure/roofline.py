"""Latency and energy of a file on a chip that nobody here owns, predicted from its published figures.

What a kernel takes stands in `measure.chips`, which kernels a file needs in `measure.steps`. All of it is a prediction,
and says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import MeasureError, ProfileError
from autocompress.hardware import HardwareProfile, Timing
from autocompress.measure.chips import energy, kernels
from autocompress.measure.graphs import Size, reads_past
from autocompress.measure.latency import Contestant, Setting
from autocompress.measure.queries import read_queries
from autocompress.measure.rounds import Rounds
from autocompress.measure.steps import Work, read_work
from autocompress.measure.unmeasured import latency_of, one_round
from autocompress.plan import Precision
from autocompress.records import Latency, Tier

#: Steps that are remembered at a time, of a file at a size.
REMEMBERED = 64


@dataclass(frozen=True)
class Forecast:
    """What a query is predicted to take; a decoder's query is the prompt and all new tokens.

    Attributes:
        seconds: of the query.
        layers: seconds per layer; under "" what belongs to none.
        overhead_s: the chip's overhead per query: what `layers` lacks of `seconds`.
        energy_j: joules; None where the chip says nothing of its power.
        first_token_s, per_token_s: of a decoder.
    """

    seconds: float
    layers: Mapping[str, float]
    overhead_s: float
    energy_j: float | None = None
    first_token_s: float | None = None
    per_token_s: float | None = None


class Roofline:
    """Predictions for the workload and the chip of an analytic profile.

    Args:
        profile: an analytic one.
        inputs: .npz file with the queries whose shapes are meant, as `measure.queries` writes it; predictions are
            means over them. Without it the workload's batch and length are.

    Raises:
        ProfileError: the profile is of another kind.
    """

    def __init__(self, profile: HardwareProfile, inputs: Path | None = None) -> None:
        if profile.chip is None:
            raise ProfileError(
                f"hardware profile {profile.name!r} has latencies: {profile.latencies}, and only an analytic one, "
                "with a chip, gives predictions"
            )
        self.profile = profile
        self.chip = profile.chip
        self.inputs = inputs
        self._works: dict[tuple[str, int, Size], Work] = {}

    def predict(self, path: Path, precisions: Mapping[str, Precision] | None = None) -> float:
        """Seconds of a query; see `forecast`."""
        return self.forecast(path, precisions).seconds

    def layers(self, path: Path, precisions: Mapping[str, Precision] | None = None) -> dict[str, float]:
        """Seconds per layer; under "" what belongs to none. See `forecast`."""
        return dict(self.forecast(path, precisions).layers)

    def energy(self, path: Path, precisions: Mapping[str, Precision] | None = None) -> float | None:
        """Joules of a query, None where the chip says nothing of its power; see `forecast`."""
        return self.forecast(path, precisions).energy_j

    def forecast(self, path: Path, precisions: Mapping[str, Precision] | None = None) -> Forecast:
        """What a query of a file takes.

        With a prompt in the workload that is the prompt, then each new token, all of them taken to stand in the
        middle of the new ones; weights are read again for each.

        Args:
            path: an exported ONNX file.
            precisions: of layers of a dense file, by module name, that are asked for in another precision than fp32.

        Raises:
            MeasureError: the file is no ONNX, an operator's work is not known, or a decoder's file reads no past.
        """
        runs, done = self._runs(path), []
        layers: dict[str, float] = defaultdict(float)
        for count, size in runs:
            found = kernels(self.work(path, size), self.chip, precisions)
            for kernel in found:
                layers[kernel.layer] += count * kernel.seconds
            done.append(found)
        each = [sum(kernel.seconds for kernel in found) + self.chip.query_overhead_s for found in done]
        joules = [energy(found, self.chip.query_overhead_s, self.chip) for found in done]
        counts = [count for count, _size in runs]
        return Forecast(
            seconds=sum(count * seconds for count, seconds in zip(counts, each, strict=True)),
            layers=dict(layers),
            overhead_s=sum(counts) * self.chip.query_overhead_s,
            energy_j=None if None in joules else sum(c * (j or 0.0) for c, j in zip(counts, joules, strict=True)),
            first_token_s=each[0] if self.profile.workload.new_tokens else None,
            per_token_s=each[1] if self.profile.workload.new_tokens else None,
        )

    def _runs(self, path: Path) -> list[tuple[float, Size]]:
        """How often the file runs in a query, and at which sizes."""
        load = self.profile.workload
        if load.prompt_length is None or load.new_tokens is None:
            if self.inputs is None:
                return [(1, Size(load.batch, load.sequence_length))]
            queries = read_queries(self.inputs)
            shapes = Counter(tuple((name, value.shape) for name, value in query.items()) for query in queries)
            return [(count / len(queries), Size(shapes=shape)) for shape, count in shapes.items()]
        if not reads_past(path):
            raise MeasureError(
                f"{path}: reads no past, so single tokens cannot be predicted; "
                "leave prompt_length and new_tokens out of the profile's workload, or export it as a decoder"
            )
        middle = load.prompt_length + load.new_tokens // 2
        return [(1, Size(load.batch, load.prompt_length)), (load.new_tokens, Size(load.batch, 1, middle))]

    def work(self, path: Path, size: Size) -> Work:
        """The steps of a file; those of the last few files are remembered."""
        try:
            key = (str(path), path.stat().st_mtime_ns, size)
        except OSError as fault:
            raise MeasureError(f"{path}: cannot be read: {fault}") from None
        if key not in self._works:
            while len(self._works) >= REMEMBERED:
                del self._works[next(iter(self._works))]
            self._works[key] = read_work(path, size)
        return self._works[key]


class RooflineBench:
    """What a search asks of `measure.latency.Bench`, answered with predictions; every latency says that it is one.

    Args:
        profile: an analytic one.
        inputs: .npz file with the queries of the workload; only their shapes are read.
        dense: the dense artefact.
        best_dense: kept for whoever asks; there is one setting, the chip's.
    """

    def __init__(self, profile: HardwareProfile, inputs: Path, dense: Path, best_dense: Setting | None = None) -> None:
        self.profile = profile
        self.inputs = inputs
        self.roofline = Roofline(profile, inputs)
        self.setting = Setting(profile.runtime, profile.threads, profile.device)
        self.dense = Contestant("dense", dense, self.setting)
        self.best_dense = best_dense or self.setting

    def __enter__(self) -> RooflineBench:
        """The bench itself."""
        return self

    def __exit__(self, *_fault: object) -> None:
        """Nothing runs, so nothing ends."""

    def close(self) -> None:
        """Nothing runs, so nothing ends."""

    def load(self, contestant: Contestant) -> float:
        """Predicted seconds per query.

        Raises:
            MeasureError: the contestant has another setting: the chip's figures hold for one.
        """
        if contestant.setting != self.setting:
            raise MeasureError(f"hardware profile {self.profile.name!r} predicts for {self.setting} alone")
        return self.roofline.predict(contestant.path)

    def race(self, contestants: Sequence[Contestant], timing: Timing, enough_queries: int = 0) -> Rounds:
        """One round of predictions, in the form of a measured one; nothing is timed."""
        return one_round(contestants, self.load)

    def table_ratio(self, path: Path, inputs: Path) -> float:
        """Predicted seconds of a part of a model with queries of its own, as a share of the dense model's."""
        return Roofline(self.profile, inputs).predict(path) / self.roofline.predict(self.dense.path)

    def outputs(self, _path: Path) -> None:
        """None: nothing runs there."""
        return

    def measure(self, path: Path, tier: Tier = "search", *, rivals: Sequence[float] = ()) -> Latency:
        """Predicted latency of an artefact, and its ratio to the dense one's.

        Args:
            path: the artefact.
            tier: is written down; every tier predicts the same.
            rivals: change nothing: there is no interval to narrow.

        Raises:
            MeasureError: see `Roofline.forecast`.
        """
        found, dense = self.roofline.forecast(path), self.roofline.predict(self.dense.path)
        ratio = found.seconds / dense
        return latency_of(
            self.profile,
            "predicted",
            tier,
            found.seconds,
            (ratio, ratio),
            warning=f"predicted from the published figures of {self.roofline.chip.name}, not measured",
            energy_j=found.energy_j,
            energy_source=None if found.energy_j is None else "predicted",
            first_token_s=found.first_token_s,
            per_token_s=found.per_token_s,
        )
