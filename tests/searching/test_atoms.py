"""Oracles: `losses` of each choice by itself, and a planted product of a variable's and a level's part."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from autocompress.compressing.losses import losses
from autocompress.rules import SpaceRules
from autocompress.searching import atoms as module
from autocompress.searching.atoms import SingleLosses, estimated
from autocompress.searching.parts import merged, parts_of
from autocompress.space import SearchSpace, build_space
from tests.tiny import any_task, bank_of, profile_of

RULES = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.5, 0.25]},
    "blocks": {"remove": True},
    "layers": [{"kind": "linear", "precision": ["fp32", "int8"], "rank": [1.0, 0.25], "share": "block"}],
}


def space_of(bank, **rules) -> SearchSpace:
    return build_space(SpaceRules.model_validate({"name": "x", **(rules or RULES)}), bank.table, profile_of())


def silent(_text: str) -> None: ...


def test_every_atom_is_the_loss_of_one_choice_alone(tmp_path: Path) -> None:
    """Oracle: `losses` of the plan that one level of one variable means."""
    bank = bank_of(any_task("bert"), tmp_path)
    space = space_of(bank)
    parts = parts_of(space)
    found = SingleLosses(bank, space, parts, 24, silent).measure(math.inf)
    assert found.measured == found.count == sum(len(v.levels) - 1 for v in space.structure)
    for variable in space.structure:
        plans = [space.decode(merged(parts.base, {variable.name: level})) for level in range(len(variable.levels))]
        known = losses(bank, plans, samples=24)
        assert found.kl[variable.name] == pytest.approx([known[plan] for plan in plans], rel=1e-3, abs=1e-9)
        assert found.kl[variable.name][0] == 0.0


def test_a_base_that_is_not_dense_loses_nothing_itself(tmp_path: Path) -> None:
    """Oracle: what is lost above the base, which halves the heads of every candidate; never below 0."""
    bank = bank_of(any_task("bert"), tmp_path)
    space = space_of(bank, groups={"heads": [0.5], "neurons": [1.0, 0.25]})
    parts = parts_of(space)
    found = SingleLosses(bank, space, parts, 24, silent).measure(math.inf)
    plans = {v.name: space.decode(merged(parts.base, {v.name: 1})) for v in space.structure}
    known = losses(bank, [space.decode(parts.base), *plans.values()], samples=24)
    for name, plan in plans.items():
        assert found.kl[name] == (0.0, pytest.approx(max(0.0, known[plan] - known[space.decode(parts.base)])))


def test_fewer_bits_are_measured_on_top_of_the_precision_that_they_belong_to(tmp_path: Path) -> None:
    """Oracle: `losses` of int8 with 3 bits above that of int8 alone; bits beside fp32 have no effect."""
    bank = bank_of(any_task("bert"), tmp_path)
    rule = {"kind": "linear", "precision": ["fp32", "int8"], "weight_bits": [8, 3], "share": "all"}
    space = space_of(bank, layers=[rule])
    found = SingleLosses(bank, space, parts_of(space), 24, silent).measure(math.inf)
    eight, three = (space.decode({"precision:rule 0": 1, "bits:rule 0": level}) for level in (0, 1))
    known = losses(bank, [eight, three], samples=24)
    assert found.kl["precision:rule 0"] == (0.0, pytest.approx(known[eight], rel=1e-3))
    assert found.kl["bits:rule 0"] == (0.0, pytest.approx(known[three] - known[eight], rel=1e-3))
    assert known[three] > 2 * known[eight]


def test_without_time_what_tells_most_is_measured_and_the_rest_estimated(tmp_path: Path) -> None:
    bank = bank_of(any_task("bert"), tmp_path)
    space = space_of(bank)
    parts = parts_of(space)
    found = SingleLosses(bank, space, parts, 24, silent).measure(0.0)
    assert 0 < found.measured < found.count
    assert all(kl > 0 for row in found.kl.values() for kl in row[1:])
    more = SingleLosses(bank, space, parts, 24, silent).measure(0.0)
    assert more.measured >= found.measured, "what is known is not asked again"


def test_what_is_looked_at_is_measured_and_nothing_else(tmp_path: Path) -> None:
    """Oracle: the same choices where all are measured."""
    bank = bank_of(any_task("bert"), tmp_path / "one")
    space = space_of(bank)
    parts = parts_of(space)
    single = SingleLosses(bank, space, parts, 24, silent)
    before = single.measure(0.0)
    every = [(v.name, level) for v in space.structure for level in range(1, len(v.levels))]
    wanted = [one for one in every if one not in before.known][:2]
    assert len(wanted) == 2
    after = single.look(wanted, math.inf)
    assert after.known == before.known | set(wanted)
    whole = SingleLosses(bank_of(any_task("bert"), tmp_path / "two"), space, parts, 24, silent).measure(math.inf)
    for name, level in wanted:
        assert after.kl[name][level] == pytest.approx(whole.kl[name][level], rel=1e-3)
    assert single.look(wanted, 0.0).measured == after.measured, "what is known is not asked again"
    hurried = [one for one in every if one not in after.known]
    assert single.look(hurried, 0.0).measured == after.measured + 1, "without time, one"


def test_what_zeros_and_recipes_lose_is_not_measured(tmp_path: Path) -> None:
    bank = bank_of(any_task("bert"), tmp_path)
    space = space_of(bank, groups={"heads": [1.0, 0.5]}, sparsity=[0.0, 0.5])
    found = SingleLosses(bank, space, parts_of(space), 24, silent).measure(math.inf)
    assert found.kl["sparsity:all layers"] == (0.0, 0.0)
    assert found.count == 2


def test_first_comes_what_tells_most_of_the_others(make_space) -> None:
    """By hand: all levels of one variable of each kind, then the lightest of all, then the rest; nothing twice."""
    space = make_space({"groups": {"neurons": [1.0, 0.5, 0.25]}, "blocks": {"remove": True}})
    order = module._in_order(space, parts_of(space))
    first, other = "keep:net.1.mlp/neurons", "keep:net.0.mlp/neurons"
    examples = [(first, 1), (first, 2), ("remove:net.1", 1)]
    assert order == [*examples, (other, 2), ("remove:net.0", 1), (other, 1)]


# estimates


def planted(draw: np.random.Generator, names: list[str], levels: int) -> dict[tuple[str, int], float]:
    own, common = draw.normal(0, 2, len(names)), np.cumsum(draw.uniform(0.5, 2, levels))
    return {(n, i): float(np.exp(o + common[i] - 6)) for n, o in zip(names, own, strict=True) for i in range(levels)}


def test_a_planted_product_is_estimated_from_one_row_and_one_column() -> None:
    draw = np.random.default_rng(0)
    names = [f"keep:{i}" for i in range(6)]
    truth = planted(draw, names, 5)
    kinds = {name: ("keep", True, 5) for name in names}
    known = {atom: kl for atom, kl in truth.items() if atom[0] == names[3] or atom[1] == 4}
    found = estimated(kinds, known, list(truth))
    assert {atom: found[atom] for atom in known} == known
    ratios = [found[atom] / kl for atom, kl in truth.items()]
    assert (min(ratios), max(ratios)) == pytest.approx((1, 1), abs=0.05)


def test_other_kinds_do_not_disturb() -> None:
    """Oracle: the estimate from its own kind alone."""
    names = ["keep:a", "keep:b", "remove:a", "remove:b"]
    kinds = {name: (name.partition(":")[0], True, 3) for name in names}
    wanted = [(name, level) for name in names for level in (1, 2)]
    known = {("keep:a", 1): 0.1, ("keep:a", 2): 0.4, ("keep:b", 2): 0.8}
    for other in (1e-6, 10.0):
        found = estimated(kinds, {**known, ("remove:a", 1): other, ("remove:a", 2): other}, wanted)
        assert found["keep:b", 1] == pytest.approx(0.2, rel=0.1)


def test_what_loses_nothing_has_a_logarithm_too() -> None:
    kinds = {name: ("keep", True, 3) for name in ("a", "b")}
    wanted = [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    found = estimated(kinds, {("a", 1): 0.0, ("a", 2): 0.1, ("b", 2): 0.1}, wanted)
    assert found["a", 1] == 0.0
    assert 0 < found["b", 1] < 1e-6


def test_without_any_measurement_all_are_alike() -> None:
    assert estimated({"a": ("keep", True, 2)}, {}, [("a", 1)]) == {("a", 1): 1.0}
