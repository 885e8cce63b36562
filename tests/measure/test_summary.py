"""Oracles: rounds and streams written by hand, with medians, quantiles and sums worked out beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from autocompress.hardware import Timing
from autocompress.measure.process import Setting
from autocompress.measure.rounds import Fault, Rounds, Turn
from autocompress.measure.summary import Names, Race, Stream, summarize
from autocompress.measure.timing import bootstrap_median, bootstrap_nested

NAMES = Names("c", "dense", "best")
ONE = Setting("onnxruntime", 1)


def race(
    ratio: float,
    blocks: int = 7,
    faults: Sequence[Fault] = ("contended", "unsteady", "contended"),
    least: int = 7,
    **more: object,
) -> Race:
    """Rounds without fault, one query each, and after them rounds with a fault of the candidate."""
    turns = {name: [Turn(s, (s,))] * (blocks + len(faults)) for name, s in (("dense", 0.001), ("best", 0.0005))}
    turns["c"] = [Turn(0.001 * ratio, (0.001 * ratio,))] * blocks + [Turn(9.0, (9.0,), 9.0, fault) for fault in faults]
    return Race(Rounds(turns, ("dense", "best"), least), load_s={"c": ratio}, **more)  # type: ignore[arg-type]


def test_processes_are_pooled() -> None:
    latency = summarize([race(0.5), race(0.6), race(0.9, blocks=9)], NAMES, ONE, Timing(), tier="report", peak=77)
    assert (latency.ratio, latency.ratio_low, latency.ratio_high) == pytest.approx((0.6, 0.5, 0.9))
    assert (latency.ratio_best_dense, latency.ratio_best_dense_high) == pytest.approx((1.2, 1.8))
    assert (latency.processes, latency.blocks, latency.rejected_blocks, latency.contended_blocks) == (3, 23, 9, 6)
    assert (latency.queries, latency.latency_s, latency.load_s) == (23, pytest.approx(0.0006), 0.6)
    assert (latency.tier, latency.peak_memory_bytes) == ("report", 77)
    assert len(latency.block_ratios) == 23


def test_the_interval_is_that_of_the_nested_bootstrap() -> None:
    rng = np.random.default_rng(0)
    races = [race(1.0), race(1.0), race(1.0)]
    for item in races:
        item.rounds.turns["c"][:7] = [Turn(s, (s,)) for s in rng.normal(0.0008, 0.00001, 7)]  # type: ignore[index]
    wanted = bootstrap_nested([item.rounds.ratios("c", "dense") for item in races])
    found = summarize(races, NAMES, ONE, Timing(), tier="report")
    assert (found.ratio, found.ratio_low, found.ratio_high) == (wanted.value, wanted.low, wanted.high)
    alone = summarize(races[:1], NAMES, ONE, Timing(), tier="search")
    assert alone.ratio_low == bootstrap_median(races[0].rounds.ratios("c", "dense")).low


def test_without_a_stream_nothing_is_said_of_one() -> None:
    latency = summarize([race(0.5)], NAMES, ONE, Timing(), tier="search")
    assert (latency.throughput, latency.p99_s, latency.energy_j, latency.energy_source) == (None,) * 4
    assert (latency.first_token_s, latency.per_token_s) == (None, None)
    assert latency.warnings == ()


def test_throughput_tail_and_energy_are_of_all_streams() -> None:
    streams = [Stream(tuple(0.001 * k for k in range(1, 513)), 200.0, 0.0, 1.024, "rapl") for _ in range(2)]
    latency = summarize([race(0.5, stream=s) for s in streams], NAMES, ONE, Timing(), tier="full")
    assert latency.throughput == 1024 / 400.0
    assert latency.p99_s == pytest.approx(np.quantile([0.001 * k for k in range(1, 513)] * 2, 0.99))
    assert latency.p99_low_s is not None
    assert latency.p99_high_s is not None
    assert latency.p99_low_s < latency.p99_s < latency.p99_high_s
    assert (latency.energy_j, latency.energy_source) == (pytest.approx(0.002), "rapl")


def test_a_short_stream_has_no_99th_percentile_and_may_have_no_energy() -> None:
    latency = summarize([race(0.5, stream=Stream((0.1,) * 999, 99.9))], NAMES, ONE, Timing(), tier="report")
    assert (latency.p99_s, latency.p99_low_s, latency.p99_high_s, latency.energy_j) == (None,) * 4
    assert latency.throughput == pytest.approx(10.0)


def test_a_decoders_tokens_are_told_apart() -> None:
    steps = {"c": [(1.0, [0.1, 0.3]), (3.0, [0.2, 0.2]), (2.0, [0.5, 0.7])], "dense": [(9.0, [9.0, 9.0])]}
    latency = summarize([race(0.5, steps=steps)], NAMES, ONE, Timing(), tier="search")
    assert (latency.first_token_s, latency.per_token_s) == (2.0, pytest.approx(0.2))


def test_doubts_are_warnings() -> None:
    faults: list[Fault] = ["contended", "unsteady", "contended", "contended", "unsteady", "contended"]
    crowded = race(0.5, 7, faults, 13, stream=Stream((0.1,) * 10, 1.0, waited=0.5))
    latency = summarize([crowded, race(0.9), race(0.91)], NAMES, ONE, Timing(), tier="report")
    assert [warning.split(":")[0] for warning in latency.warnings] == [
        "the machine was unsteady in 2 kept rounds",
        "other programs took the processor in 4 kept rounds",
        "noisy",
        "fresh processes disagree",
        "back to back, threads stood in line for a core for 50% of the time",
    ]
    assert "0.500 to 0.910 of dense" in latency.warnings[3]
