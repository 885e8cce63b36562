"""What benchmarks/search.py makes of runs: oracles are rectangles, and medians of hand-made runs."""

import json
import math
from pathlib import Path

import common
import numpy as np
import pytest
from searching.compare import compare, curve, fronts, graded, markdown, median, record, rows, run_of, runs_of

#: In (ln ratio, quality): a point of ratio r and quality q alone has the rectangle ``-ln r · (q - 0.5)``.
REFERENCE = (0.0, 0.5)


def values(*found, prepared_s=0.0, spent_s=100.0, maximize=True, reference=REFERENCE, table="t"):
    return {
        "evaluator": {"table": table}, "reference": list(reference), "maximize": maximize,
        "prepared_s": prepared_s, "spent_s": spent_s, "found": [list(one) for one in found],
    }  # fmt: skip


def run(*found, **more):
    return run_of(values(*found, **more))


def line(method, seed, *found, task="digits", cpu="one", **more):
    return {
        "case": {"task": task, "method": method, "seed": seed},
        "values": values(*found, **more),
        "environment": {"machine": {"cpu": cpu}},
    }


HALF, THIRD = math.exp(-1), math.exp(-2)  # one and two units left of the reference


def test_one_candidate_has_its_rectangle():
    assert run((3.0, HALF, 0.9)).final == pytest.approx(1 * 0.4)


def test_volumes_are_unions_of_rectangles_and_do_not_grow_by_dominated_candidates():
    found = run((1, HALF, 0.9), (2, HALF, 0.8), (3, THIRD, 0.7), (4, THIRD, 0.9))
    assert found.seconds.tolist() == [1, 3, 4]
    assert found.volumes == pytest.approx([0.4, 0.4 + 0.2, 0.8])
    assert len(found.points) == 4


def test_a_candidate_behind_the_reference_adds_nothing():
    assert run((1, 1.2, 0.9), (2, HALF, 0.4)).final == 0.0


def test_less_is_better_where_the_metric_is_minimized():
    assert run((1, HALF, 2.0), maximize=False, reference=(0.0, 3.0)).final == pytest.approx(1.0)


def test_at_is_what_was_known_by_then():
    found = run((1, HALF, 0.9), (3, THIRD, 0.9))
    assert [found.at(second) for second in (0.9, 1, 2.9, 3, math.inf)] == pytest.approx([0, 0.4, 0.4, 0.8, 0.8])


def test_a_front_is_graded_anew_against_what_dense_has_on_fresh_samples():
    # dense of 0.9 has its reference at 0.8, and 1.05 of its latency
    members = [{"ratio": HALF, "fresh_quality": 0.9}, {"ratio": THIRD, "fresh_quality": 0.7}]
    found = run_of({**values((1, HALF, 0.95)), "front": members, "fresh": {"samples": 9, "dense_quality": 0.9}})
    assert found.fresh == pytest.approx((1 + math.log(1.05)) * 0.1)
    assert math.isnan(found.fresh_both)
    assert math.isnan(run((1, HALF, 0.95)).fresh)


def test_the_front_by_divergence_is_graded_with_the_other():
    members = [
        {"ratio": THIRD, "fresh_quality": 0.85, "by_quality": True, "by_divergence": False},
        {"ratio": HALF, "fresh_quality": 0.9, "by_quality": False, "by_divergence": True},
    ]
    found = run_of({**values((1, HALF, 0.95)), "front": members, "fresh": {"samples": 9, "dense_quality": 0.9}})
    assert found.fresh == pytest.approx((2 + math.log(1.05)) * 0.05)
    assert found.fresh_both == pytest.approx(found.fresh + (1 + math.log(1.05)) * 0.05)


def test_reached_is_the_first_second_with_as_much():
    found = run((1, HALF, 0.9), (3, THIRD, 0.9))
    assert [found.reached(v) for v in (0.0, 0.1, 0.4, 0.41, 0.8, 0.81)] == [0.0, 1, 1, 3, 3, math.inf]


def test_a_run_reaches_its_own_final_volume_whatever_the_rounding():
    draw = np.random.default_rng(0)
    found = run(*((i, math.exp(-draw.random()), 0.5 + draw.random() / 2) for i in range(200)))
    assert found.reached(found.final) == found.seconds[-1]


def test_a_run_that_found_nothing_has_no_volume():
    assert run().final == 0.0
    assert run().reached(0.1) == math.inf


RUNS = runs_of(
    [
        line("staged", 0, (5, HALF, 0.9), (20, THIRD, 0.9), prepared_s=4.0),
        line("staged", 1, (10, THIRD, 0.9), prepared_s=4.0),
        line("staged", 2, (40, THIRD, 1.0), prepared_s=4.0),
        line("nsga2", 0, (90, HALF, 0.9), spent_s=200.0),
        line("nsga2", 1, (90, THIRD, 0.9), spent_s=100.0),
        line("nsga2", 2, (90, THIRD, 0.9), spent_s=100.0),
        line("nsga2-uniform", 0, (9, THIRD, 1.0)),
        line("knapsack", 1, (2, HALF, 0.7), prepared_s=1.0, spent_s=3.0),
    ],
    "digits",
)


def test_time_to_target_is_our_second_of_their_final_volume_over_all_their_seconds():
    # seed by seed: 5/200, 10/100, 40/100; without the preparation 1/200, 6/100, 36/100
    found = record("digits", "nsga2", RUNS)
    assert found == {
        "task": "digits",
        "baseline": "nsga2",
        "seeds": 3,
        "time_to_target_ratio": 0.1,
        "time_to_target_ratio_without_bank": 0.06,
        "hypervolume_staged": pytest.approx(0.8),
        "hypervolume_baseline": pytest.approx(0.8),
        "hypervolume_fresh_staged": None,
        "hypervolume_fresh_baseline": None,
        "hypervolume_fresh_both_staged": None,
        "hypervolume_fresh_both_baseline": None,
    }


def test_no_time_to_target_is_told_of_seeded_baselines():
    found = record("digits", "nsga2-uniform", RUNS)
    assert (found["time_to_target_ratio"], found["time_to_target_ratio_without_bank"]) == (None, None)
    assert (found["seeds"], found["hypervolume_staged"], found["hypervolume_baseline"]) == (
        1, pytest.approx(0.8), pytest.approx(1.0),
    )  # fmt: skip


def test_only_seeds_that_both_have_are_compared():
    found = record("digits", "knapsack", RUNS)
    assert (found["seeds"], found["hypervolume_staged"], found["hypervolume_baseline"]) == (
        1, pytest.approx(0.8), pytest.approx(0.2),
    )  # fmt: skip
    assert found["time_to_target_ratio"] == pytest.approx(10 / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], None), ([1.0], 1.0), ([3.0, 1.0, 2.0], 2.0), ([1.0, 2.0], 1.5), ([1.0, math.inf], None),
     ([1.0, 2.0, math.inf], 2.0), ([1.0, math.nan, 2.0], None), ([1.0, math.inf, math.inf], None)],
)  # fmt: skip
def test_the_median_is_none_where_half_never_got_there(given, expected):
    assert median(given) == expected


def test_a_curve_spans_the_seconds_that_all_seeds_had():
    found = curve([run((1, HALF, 0.9), spent_s=50.0), run((1, THIRD, 0.9), (60, THIRD, 1.0), spent_s=100.0)])
    assert (found["seconds"][0], found["seconds"][-1]) == (1.0, 50.0)
    assert (found["low"][-1], found["median"][-1], found["high"][-1]) == pytest.approx((0.4, 0.6, 0.8))


def test_median_attainment_is_what_half_of_the_runs_dominate():
    runs = {"staged": {0: run((1, 0.5, 0.9)), 1: run((1, 0.4, 0.8)), 2: run((1, 0.3, 0.7))}}
    assert fronts(runs)["staged"] == pytest.approx(np.array([[0.4, 0.7], [0.5, 0.8]]))


def test_what_two_evaluators_graded_is_not_compared():
    lines = [line("staged", 0, table="a"), line("nsga2", 0, table="b")]
    with pytest.raises(SystemExit, match="digits, seed 0: lines of 2 evaluators"):
        runs_of(lines, "digits")
    with pytest.raises(SystemExit, match="seed 0"):
        runs_of([line("staged", 0, cpu="this"), line("nsga2", 0, cpu="that")], "digits")


def test_another_seed_may_be_of_another_machine():
    every = [line(name, seed, table=f"of {seed}", cpu=f"of {seed}") for name in ("staged", "nsga2") for seed in (0, 1)]
    assert {name: sorted(seeds) for name, seeds in runs_of(every, "digits").items()} == {
        "staged": [0, 1], "nsga2": [0, 1],
    }  # fmt: skip


def test_the_table_has_a_row_per_method_and_pastes_as_markdown():
    found = rows("digits", RUNS)
    assert [row[0] for row in found] == [
        "**staged**", "NSGA-II from uniform levels", "plain NSGA-II", "the program alone",
    ]  # fmt: skip
    assert found[2][-2:] == ("0.100", "0.060")
    assert found[1][-4:] == ("–", "–", "–", "–")
    assert markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_what_was_graded_of_some_seeds_alone_says_so():
    assert graded([0.2, math.nan, 0.4]) == "0.3000 (2 of 3)"
    assert graded([0.2, 0.3, 0.4]) == "0.3000"
    assert graded([math.nan]) == "–"


def test_summary_is_a_list_with_environment_and_curves_beside_it(tmp_path):
    sheet = common.Sheet("search", tmp_path)
    for one in (line("staged", 0, (5, HALF, 0.9)), line("nsga2", 0, (9, HALF, 0.8))):
        sheet.run(lambda one=one: one["values"], **one["case"])
    told = tmp_path / "told.md"
    told.write_text("Before.\n\n**Digits**\n\n| old |\n| --- |\n\nAfter.\n")
    compare(sheet, {"digits": "Digits", "sst2": "SST-2"}, tmp_path / "search", tmp_path / "page.html", None, told)
    summary = json.loads((tmp_path / "search" / "summary.json").read_text())
    assert [(one["task"], one["baseline"]) for one in summary] == [("digits", "nsga2")]
    assert set(json.loads((tmp_path / "search" / "curves.json").read_text())["digits"]) == {"staged", "nsga2"}
    (environment,) = json.loads((tmp_path / "search" / "environment.json").read_text())
    assert "machine" in environment
    assert environment["ran"] == {"digits": [0]}
    table = (tmp_path / "search" / "table.md").read_text()
    assert table.startswith("**Digits**")
    assert told.read_text() == f"Before.\n\n{table}\nAfter.\n"
    told.write_text("Nothing.\n")
    with pytest.raises(SystemExit, match=r"no table below \*\*Digits\*\*"):
        compare(sheet, {"digits": "Digits"}, tmp_path / "search", tmp_path / "page.html", None, told)


def test_the_page_shows_the_tables_that_were_written():
    """docs/measured.md quotes the contests whole; `--show --told docs/measured.md` renews it."""
    root = Path(__file__).resolve().parents[2]
    table = (root / "benchmarks" / "results" / "search" / "table.md").read_text(encoding="utf-8").strip()
    assert table in (root / "docs" / "measured.md").read_text(encoding="utf-8")
