"""Oracles: the runtime's own profiler, the shipped profiles, and a chip's published peaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress import kernels
from autocompress.errors import ConfigError, ProfileError
from autocompress.hardware import load_profile
from autocompress.kernels import parse_widths, probe_kernels
from tests.test_devices import TIMING


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.WIDTHS, "conv", (8,))
    monkeypatch.setattr(kernels, "EDGE", 8)


def test_what_ran_in_integers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    path.write_text("threads: 1\nprecisions: {linear: [int8-dynamic, int4-weights], conv: [int8]}\n" + TIMING)
    told: list[object] = []
    facts = probe_kernels(load_profile(path), [32], told.append)
    assert list(facts) == told
    found = {(fact.kind, fact.rows, fact.precision): fact for fact in facts}
    assert set(found) == {
        *(("linear", rows, precision) for rows in (1, 128) for precision in ("int8-dynamic", "int4-weights")),
        ("conv", 1, "int8"),
    }
    assert found["linear", 128, "int8-dynamic"].computed_in == {"int8": kernels.DEPTH}
    assert found["linear", 1, "int4-weights"].computed_in == {"int4-weights": kernels.DEPTH}
    assert found["conv", 1, "int8"].computed_in == {"int8": kernels.DEPTH}
    for fact in facts:
        assert fact.source == "measured"
        assert fact.ratio is not None
        assert fact.kept == (not fact.why)


def test_a_chip_that_is_not_here_is_predicted() -> None:
    facts = probe_kernels(load_profile("a100"), [256])
    assert {fact.source for fact in facts} == {"predicted"}
    assert all(fact.computed_in == {} for fact in facts)
    assert all(fact.words().endswith(" of fp32, predicted") for fact in facts)


def test_a_precision_that_does_not_run_is_told_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_more: object) -> None:
        raise ConfigError("no such kernel")

    path = tmp_path / "here.yaml"
    path.write_text("threads: 1\nprecisions: {linear: [int8], conv: []}\n" + TIMING)
    monkeypatch.setattr(kernels, "_computed_in", refuse)
    for fact in probe_kernels(load_profile(path), [32]):
        assert (fact.kept, fact.ratio, fact.why) == (False, None, "does not run here: no such kernel")


def test_a_recorded_device_cannot_be_probed() -> None:
    recorded = load_profile("cpu").model_copy(update={"latencies": "recorded"})
    with pytest.raises(ProfileError, match="'cpu' is recorded: its device is not here"):
        probe_kernels(recorded)


def test_widths_are_multiples_of_32() -> None:
    assert parse_widths("256, 768") == (256, 768)
    with pytest.raises(ConfigError, match=r"--widths: 100 must be a multiple of 32"):
        probe_kernels(load_profile("cpu"), [64, 100])
    with pytest.raises(ConfigError, match=r"--widths '64,x': 'x' is no number"):
        parse_widths("64,x")
