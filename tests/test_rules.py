"""Oracle: messages and records written by hand for YAML written by hand."""

from __future__ import annotations

import re

import pytest

from autocompress.errors import SpaceError
from autocompress.rules import DistillDefault, load_space


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return file

    return make


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("lairs: []", "mine.yaml: lairs: unknown key; did you mean 'layers'?", id="unknown_key"),
        pytest.param(
            "layers: [{mtach: a}]", "mine.yaml: layers.0.mtach: unknown key; did you mean 'match'?", id="inner_key"
        ),
        pytest.param("groups: {heads: half}", "mine.yaml: groups.heads: input should be a valid tuple, but got 'half'",
                     id="wrong_type"),
        pytest.param("groups: {heads: [1.5]}",
                     "mine.yaml: groups.heads.0: input should be less than or equal to 1, but got 1.5", id="above_1"),
        pytest.param("groups: {neurons: [0]}",
                     "mine.yaml: groups.neurons.0: input should be greater than 0, but got 0", id="share_0"),
        pytest.param("layers: [{precision: [int7]}]",
                     "mine.yaml: layers.0.precision.0: input should be 'fp32', 'int8'", id="unknown_precision"),
        pytest.param("distill: {temperature: {low: 3, high: 2}}",
                     "low must not be above high, and above 0 where log is true", id="bounds_crossed"),
        pytest.param("distill: {temperature: {low: 0, high: 2, log: true}}",
                     "low must not be above high, and above 0 where log is true", id="log_of_0"),
        pytest.param("distill: {steps: [-1]}",
                     "mine.yaml: distill.steps.0: input should be greater than or equal to 0, but got -1", id="steps"),
        pytest.param("distill: {default: {soft_wieght: 0.5}}", "mine.yaml: distill.default.soft_wieght: ",
                     id="unknown_default"),
    ],
)  # fmt: skip
def test_load_space_names_file_key_and_value(write, text, message):
    with pytest.raises(SpaceError, match=re.escape(message)):
        load_space(write(text))


def test_load_space_tells_several_mistakes_at_once(write):
    with pytest.raises(SpaceError, match=r"mine\.yaml:") as caught:
        load_space(write("groups: {heads: [2]}\nlayers: [{mtach: a, precision: [int7]}]\nfoo: 1\n"))
    told = [line.strip().split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert sorted(told) == ["foo", "groups.heads.0", "layers.0.mtach", "layers.0.precision.0"]


def test_a_default_out_of_range_names_the_file_and_the_other_mistakes(write):
    with pytest.raises(SpaceError, match=r"(?s)mine\.yaml:(?=.*distill\.default)(?=.*soft_weight)(?=.*foo)"):
        load_space(write("distill: {default: {soft_weight: 3}}\nfoo: 1\n"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param("distill: {steps: []}", "distill.steps", id="steps"),
        pytest.param("groups: {heads: []}", "groups.heads", id="heads"),
        pytest.param("layers: [{precision: []}]", "layers.0.precision", id="precision"),
        pytest.param("layers: [{rank: []}]", "layers.0.rank", id="rank"),
    ],
)
def test_an_empty_list_of_levels_is_refused(write, text, key):
    message = f"mine.yaml: {key}: value error, must hold at least one level, but got []"
    with pytest.raises(SpaceError, match=re.escape(message)):
        load_space(write(text))


def test_the_defaults_of_the_recovery_are_checked_by_the_file(write):
    rules = load_space(write("distill: {default: {soft_weight: 1, temperature: 3}}\n"))
    assert rules.distill.default == DistillDefault(soft_weight=1.0, temperature=3.0, learning_rate=3e-4)
    text = "distill: {default: {soft_weight: 2, temperature: 0, learning_rate: -1}}"
    with pytest.raises(SpaceError, match=r"mine\.yaml:") as caught:
        load_space(write(text))
    for key in ("soft_weight", "temperature", "learning_rate"):
        assert f"distill.default.{key}: input should be" in str(caught.value)


def test_the_name_is_the_file_unless_given(write):
    assert load_space(write("description: x\n")).name == "mine"
    assert load_space(write("name: other\n")).name == "other"
