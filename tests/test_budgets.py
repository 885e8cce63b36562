"""Oracle: arithmetic by hand. Dense takes 10 ms and has quality 0.9."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.budgets import Budgets, latency_high, parse_bytes, parse_seconds, parse_speedup
from autocompress.drop import Drop, parse_drop
from autocompress.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5ms", 0.005), ("0.5ms", 0.0005), (".5s", 0.5), ("250us", 250e-6), ("250µs", 250e-6), ("90s", 90.0),
        ("30m", 1800.0), ("30min", 1800.0), ("2h", 7200.0), (" 2 H ", 7200.0), ("1.5 m", 90.0),
    ],
)  # fmt: skip
def test_parse_seconds(text, seconds):
    assert parse_seconds(text, "--budget") == pytest.approx(seconds, rel=1e-12)


@given(st.integers(1, 10**6), st.sampled_from([("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("h", 3600.0)]))
def test_parse_seconds_of_whole_numbers(number, unit):
    name, factor = unit
    assert parse_seconds(f"{number}{name}", "--budget") == pytest.approx(number * factor)


def test_a_bare_number_takes_the_unit_given():
    assert parse_seconds("5", "--max-latency", bare="ms") == 0.005
    with pytest.raises(ConfigError, match="--budget must be a time above 0 such as 5ms, 90s or 30m, but got '5'"):
        parse_seconds("5", "--budget")


@pytest.mark.parametrize("text", ["", "ms", "0s", "-1s", "5 days", "1e3s", "nan", "inf s", "5ms 3"])
def test_parse_seconds_refuses(text):
    with pytest.raises(ConfigError, match="^--budget must be a time above 0 .*" + re.escape(repr(text)) + "$"):
        parse_seconds(text, "--budget")


@pytest.mark.parametrize(("text", "factor"), [("2x", 2.0), ("2", 2.0), ("1.5×", 1.5), ("3 X", 3.0), ("1x", 1.0)])
def test_parse_speedup(text, factor):
    assert parse_speedup(text) == factor


@pytest.mark.parametrize("text", ["0.5x", "x", "", "2xx", "-2x", "50%", "nan"])
def test_parse_speedup_refuses(text):
    with pytest.raises(ConfigError, match=r"^--min-speedup must be a factor of 1 or more such as 2x, but got"):
        parse_speedup(text)


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("1pt", Drop(0.01, False)), ("0.5 pts", Drop(0.005, False)), ("1 point", Drop(0.01, False)),
        ("2 points", Drop(0.02, False)), ("1%", Drop(0.01, True)), ("0pt", Drop(0.0, False)),
    ],
)  # fmt: skip
def test_parse_drop(text, drop):
    assert parse_drop(text) == drop


@pytest.mark.parametrize("text", ["1", "-1pt", "pt", "", "1 percent"])
def test_parse_drop_refuses(text):
    with pytest.raises(ConfigError, match=r"^--max-drop must be points such as 1pt or a share such as 1%, but got"):
        parse_drop(text)


@pytest.mark.parametrize(
    ("relative", "maximize", "quality", "dense", "lost"),
    [
        pytest.param(False, True, 0.88, 0.90, 0.02, id="points_of_accuracy"),
        pytest.param(True, True, 0.81, 0.90, 0.10, id="share_of_accuracy"),
        pytest.param(True, False, 22.0, 20.0, 0.10, id="share_of_perplexity"),
        pytest.param(False, True, 0.92, 0.90, -0.02, id="better_than_dense_is_negative"),
        pytest.param(True, True, -2.2, -2.0, 0.10, id="share_of_a_negative_score"),
        pytest.param(True, False, 0.1, 0.0, 0.10, id="share_of_zero_is_the_loss_itself"),
    ],
)
def test_drop_lost(relative, maximize, quality, dense, lost):
    assert Drop(0.01, relative).lost(quality, dense, maximize) == pytest.approx(lost)


def test_drop_in_words():
    assert str(parse_drop("1pt")) == "1 point"
    assert str(parse_drop("2pt")) == "2 points"
    assert str(parse_drop("0.5pt")) == "0.5 points"
    assert str(parse_drop("1%")) == "1 % of the dense quality"


def test_budgets_are_true_when_anything_is_asked():
    assert not Budgets()
    assert Budgets(max_latency_s=1.0)
    assert Budgets(min_speedup=1.0)
    assert Budgets(max_drop=Drop(0.0, False))


def test_latency_high_is_the_median_scaled_by_the_upper_end(make_trial):
    # 5 ms, ratio 0.5, upper end 0.6: 6 ms.
    assert latency_high(make_trial(0, 0.5, 0.9, doubt=0.2)) == pytest.approx(0.006)


@pytest.mark.parametrize(
    ("budgets", "name", "over"),
    [
        pytest.param(Budgets(max_latency_s=0.008), "latency", 0.006 / 0.008 - 1, id="latency_within"),
        pytest.param(Budgets(max_latency_s=0.0055), "latency", 0.006 / 0.0055 - 1, id="latency_over_by_its_doubt"),
        pytest.param(Budgets(min_speedup=1.5), "speedup", 0.6 * 1.5 - 1, id="speedup_within"),
        pytest.param(Budgets(min_speedup=2.0), "speedup", 0.6 * 2 - 1, id="speedup_over_by_its_doubt"),
        pytest.param(Budgets(max_drop=Drop(0.03, False)), "drop", 0.02 - 0.03, id="drop_within"),
        pytest.param(Budgets(max_drop=Drop(0.01, False)), "drop", 0.02 - 0.01, id="drop_over"),
        pytest.param(Budgets(max_drop=Drop(0.01, True)), "drop", 0.02 / 0.9 - 0.01, id="relative_drop_over"),
    ],
)
def test_violations_count_the_upper_end_of_the_interval(make_trial, budgets, name, over):
    trial = make_trial(0, 0.5, 0.88, doubt=0.2)
    assert budgets.violations(trial, 0.9, True) == {name: pytest.approx(over)}
    assert bool(budgets.lacks(trial, 0.9, True)) == (over > 0)


@pytest.mark.parametrize(
    ("peak", "over", "lacks"),
    [
        pytest.param(40_000_000, -0.2, [], id="within"),
        pytest.param(60_000_000, 0.2, ["its peak memory is 60 MB, 50 MB allowed"], id="over"),
        pytest.param(None, math.inf, ["its peak memory is not measured, 50 MB allowed"], id="not_known"),
    ],
)
def test_memory_is_judged_by_what_was_measured(make_trial, peak, over, lacks):
    trial = make_trial(0, 0.5, 0.88)
    trial = trial.replace(latency=replace(trial.latency, peak_memory_bytes=peak))
    budgets = Budgets(max_memory_bytes=50_000_000)
    assert budgets.violations(trial, 0.9, True) == {"memory": pytest.approx(over)}
    assert budgets.lacks(trial, 0.9, True) == lacks
    assert list(budgets.sentences()) == ["needs at most 50 MB of memory"]


def test_violations_have_the_same_names_for_every_trial(make_trial):
    budgets = Budgets(0.005, 2.0, Drop(0.01, False))
    for trial in (make_trial(0, 1.0, 0.9), make_trial(1, 0.1, 0.9), make_trial(2, 0.1, 0.1)):
        assert list(budgets.violations(trial, 0.9, True)) == ["latency", "speedup", "drop"]
    assert Budgets().violations(make_trial(0, 1.0, 0.9), 0.9, True) == {}


def test_lacks_says_what_is_and_what_was_asked(make_trial):
    trial = make_trial(0, 0.5, 0.88, doubt=0.2)
    assert Budgets(0.005, 2.0, Drop(0.01, False)).lacks(trial, 0.9, True) == [
        "its latency is 6 ms (upper end), 5 ms allowed",
        "it is 1.667x faster (lower end), 2x asked",
        "it loses 2.00 points on validation, 1 point allowed",
    ]
    assert Budgets(max_drop=Drop(0.01, True)).lacks(trial, 0.9, True) == [
        "it loses 2.22 % on validation, 1 % of the dense quality allowed"
    ]
    assert Budgets(0.006001, 1.6, Drop(0.021, False)).lacks(trial, 0.9, True) == []


def test_sentences_say_what_is_asked():
    assert list(Budgets(0.005, 2.0, Drop(0.01, False)).sentences()) == [
        "answers within 5 ms",
        "at least 2x faster than the fastest dense fp32",
        "loses at most 1 point of validation quality",
    ]
    assert list(Budgets().sentences()) == []


def test_points_of_a_metric_that_is_no_fraction_are_its_own_units():
    drop = parse_drop("2pt", points=1.0)
    assert (drop.amount, str(drop)) == (2.0, "2 points")
    assert drop.lost(quality=70.0, dense=71.5, maximize=True) == 1.5


def test_a_drop_of_exactly_what_is_allowed_is_within(make_trial):
    # 0.90 - 0.89 is a little more than 0.01 in binary.
    budgets = Budgets(max_drop=Drop(0.01, False))
    assert budgets.violations(make_trial(0, 0.5, 0.89), 0.90, True) == {"drop": 0.0}
    assert budgets.lacks(make_trial(0, 0.5, 0.89), 0.90, True) == []
    assert budgets.violations(make_trial(0, 0.5, 0.8899), 0.90, True)["drop"] > 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("500 mb", 500_000_000), ("1.5GiB", 3 * 2**29), ("64KiB", 65536), ("7b", 7)],
)
def test_parse_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["2", "0GB", "-1GB", "GB", "", "2 gigabytes", "0.1b"])
def test_parse_bytes_refuses(text):
    with pytest.raises(ConfigError, match=r"^--bank-limit must be a size above 0 such as 500MB, 2GB or 1\.5GiB, but"):
        parse_bytes(text)
