"""Every shipped YAML is read, opens with a comment, and works. Oracles: `check_plan` and the profile's kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import SpaceError
from autocompress.hardware import load_profile
from autocompress.layers import LayerTable
from autocompress.plan import Plan, check_plan
from autocompress.processors import cores
from autocompress.rules import load_space
from autocompress.settings import shipped_names
from autocompress.space import build_space

TOP = Path(__file__).resolve().parent.parent
SPACES = sorted((TOP / "search_spaces").iterdir())
PROFILES = sorted((TOP / "hardware_profiles").iterdir())


def stem(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def table(make_table) -> LayerTable:
    """Wide enough that every profile's multiples leave a choice of structures and ranks."""
    return make_table(2, 256)


@pytest.mark.parametrize("file", [*SPACES, *PROFILES], ids=lambda p: f"{p.parent.name}-{p.name}")
def test_it_is_yaml_and_opens_with_a_comment(file):
    assert file.suffix == ".yaml"
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


@pytest.mark.parametrize("folder", ["search_spaces", "hardware_profiles"])
def test_shipped_names_are_all_files(folder):
    assert shipped_names(folder) == sorted(p.stem for p in (TOP / folder).iterdir())


@pytest.mark.parametrize("file", SPACES, ids=stem)
def test_space_loads_by_name_and_by_path(file):
    rules = load_space(file)
    assert load_space(file.stem) == rules
    assert rules.name == file.stem
    assert rules.description


@pytest.mark.parametrize("file", PROFILES, ids=stem)
def test_profile_loads_by_name_and_by_path(file):
    profile = load_profile(file)
    assert load_profile(file.stem) == profile
    assert profile.name == file.stem
    assert profile.description
    assert profile.threads >= 1
    assert profile.threads <= cores() or profile.latencies == "analytic"
    assert 1 <= profile.host_threads <= cores()
    assert set(profile.precisions) == {"linear", "conv", "embedding"}


def test_the_shipped_profiles_are_of_every_kind_that_needs_no_table():
    kinds = Counter(load_profile(file).latencies for file in PROFILES)
    assert set(kinds) == {"measured", "analytic"}
    assert sum(kinds.values()) >= 8


@pytest.mark.parametrize("file", [file for file in PROFILES if "latencies: analytic" in file.read_text()], ids=stem)
def test_an_analytic_profile_says_whose_figures_it_has_and_loads_on_the_smallest_machine(file, monkeypatch):
    monkeypatch.setattr("autocompress.hardware.cores", lambda: 1)
    profile = load_profile(file)
    chip = profile.chip
    assert chip is not None
    assert chip.name
    assert len(chip.source) > 20
    assert "predicted" in profile.description
    assert set(chip.efficiency) == set(chip.peaks)
    assert list(chip.peaks.values()) == sorted(chip.peaks.values()), "fewer bits are never slower"
    assert profile.workload.batch == 1


def built(rules, table, profile):
    """The space; a convolutional one may leave nothing to choose of an encoder where few precisions have a kernel."""
    try:
        return build_space(rules, table, profile)
    except SpaceError:
        if rules.name != "cnn":
            raise
        pytest.skip(f"{rules.name} leaves nothing to choose of an encoder on {profile.name}")


@pytest.mark.parametrize("profile_file", PROFILES, ids=stem)
@pytest.mark.parametrize("space_file", SPACES, ids=stem)
def test_space_on_profile_gives_dense_int8_and_smallest(space_file, profile_file, table):
    profile = load_profile(profile_file)
    rules = load_space(space_file)
    space = built(rules, table, profile)
    assert (space.decode(space.uniform()) == Plan()) == (rules.name != "distillation")  # whose structure is fixed
    int8 = space.decode(space.uniform(precision="int8"))
    check_plan(int8, table)
    found = {int8.layers[la.name].precision for la in table.layers if la.kind == "linear" and la.name in int8.layers}
    offered = any("int8" in rule.precision for rule in rules.layers) and "int8" in profile.precisions["linear"]
    assert found == ({"int8"} if offered else set())
    smallest = space.decode(space.uniform(keep=0.0, precision="int8", rank=0.0, removed=table.blocks))
    check_plan(smallest, table)
    assert smallest.distill is None


@pytest.mark.parametrize("profile_file", PROFILES, ids=stem)
@pytest.mark.parametrize("space_file", SPACES, ids=stem)
@settings(max_examples=15)
@given(data=st.data())
def test_every_plan_of_space_on_profile_has_a_kernel(space_file, profile_file, table, data):
    profile = load_profile(profile_file)
    space = built(load_space(space_file), table, profile)
    values = {
        v.name: data.draw(st.integers(0, len(v.levels) - 1) if v.levels else st.floats(v.low, v.high))
        for v in space.variables
    }
    plan = space.decode(values)
    check_plan(plan, table)
    for name, layer_plan in plan.layers.items():
        assert layer_plan.precision in profile.precisions[table.layer(name).kind]


@pytest.mark.parametrize("file", SPACES, ids=stem)
def test_space_with_a_typing_mistake_is_refused(file, tmp_path):
    text, copy = file.read_text(encoding="utf-8"), tmp_path / file.name
    mistakes = {"precision": ("precison", r"layers\.0"), "rank": ("rnk", r"layers\.0"), "heads": ("haeds", "groups")}
    key = next(key for key in mistakes if f" {key}: " in text)
    wrong, where = mistakes[key]
    copy.write_text(text.replace(f" {key}: ", f" {wrong}: "))
    with pytest.raises(SpaceError, match=rf"{where}\.{wrong}: unknown key; did you mean '{key}'"):
        load_space(copy)
