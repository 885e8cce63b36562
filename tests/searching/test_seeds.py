"""What a search starts with. Oracle: plans written by hand for the encoder of conftest."""

from __future__ import annotations

import pytest

from autocompress.layers import Group, LayerTable, Slice
from autocompress.plan import Cofi, Distill, Factorize, Plan, Prune
from autocompress.searching.probe import DenseSetting, Probe
from autocompress.searching.seeds import seeds

PROBE = Probe((DenseSetting("onnxruntime", 1, 0.01, 1.0),), (), 0.001, 0.1, 0.01)


@pytest.fixture
def seeded(make_space):
    """The plans of a space's seeds, those with effect once."""

    def make(rules, **changes):
        space = make_space(rules, **changes)
        return list(dict.fromkeys(space.decode(values) for _origin, values in seeds(space, PROBE)))

    return make


def test_levels_of_channels_are_tried_uniformly(seeded, table):
    channels = (Group("conv/channels", "channels", 32, (Slice("conv"),)),)
    found = seeded({"groups": {"channels": [1.0, 0.5, 0.25]}}, table=LayerTable(table.layers, channels, 1))
    assert found == [Plan(), *(Plan({"conv/channels": Prune(keep)}) for keep in (16, 8))]


def test_levels_of_what_the_model_lacks_are_no_seeds(seeded):
    found = seeded({"groups": {"heads": [1.0, 0.5], "channels": [1.0, 0.25]}})
    assert found == [Plan(), Plan({f"net.{i}.attention/heads": Prune(2) for i in range(2)})]


def test_every_recipe_is_tried_once(seeded):
    learn = [None, {"recipe": "cofi", "sparsity": 0.5}, {"recipe": "cofi", "sparsity": 0.9}]
    assert seeded({"learn": learn}) == [Plan(), Plan(learn=Cofi(0.5)), Plan(learn=Cofi(0.9))]


def test_ranks_are_tried_uniformly(seeded):
    found = seeded({"layers": [{"match": "net.0.up", "rank": [1.0, 0.5, 0.25]}]})
    up = [{"net.0.up": rank} for rank in (4, 2)]
    assert [{name: lp.factorize for name, lp in plan.layers.items()} for plan in found] == [
        {}, *({name: Factorize(rank) for name, rank in each.items()} for each in up),
    ]  # fmt: skip


def test_what_only_teaches_starts_untaught_as_usual_and_by_labels_alone(seeded):
    rules = {"groups": {"heads": [0.5]}, "distill": {"steps": [0, 10, 20], "default": {"soft_weight": 0.9}}}
    half = {f"net.{i}.attention/heads": Prune(2) for i in range(2)}
    usual, labels = (Distill(soft, 2.0, 3e-4, 20) for soft in (0.9, 0.0))
    assert seeded(rules) == [Plan(half), Plan(half, distill=usual), Plan(half, distill=labels)]
