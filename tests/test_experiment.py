"""Oracle: the laid-over settings written out, and messages by hand."""

from __future__ import annotations

import pytest

from autocompress.errors import ConfigError
from autocompress.experiment import SOURCE_KEYS, Experiment, load_experiment


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        file = tmp_path / "exp.yaml"
        file.write_text(text)
        return file

    return make


def test_flags_alone_with_the_defaults():
    loaded = load_experiment(None, {"task": "digits", "budget": None, "seed": 3})
    assert loaded == Experiment(task="digits", seed=3)
    assert (loaded.hardware, loaded.budget, loaded.sampler) == ("cpu", "30m", "auto")


def test_flags_that_were_given_lie_over_the_file(write):
    file = write("task: digits\nseed: 1\nbudget: 5m\nmin_speedup: 2x\n")
    loaded = load_experiment(file, {"budget": "1m", "seed": 0, "max_drop": None, "task": None})
    assert loaded == Experiment(task="digits", seed=0, budget="1m", min_speedup="2x")


def test_no_file_and_no_task_says_what_to_give():
    with pytest.raises(ConfigError, match=r"give --task \(digits, text-classification, .* my\.py:make_task\)"):
        load_experiment(None, {"seed": 1})


def test_what_a_run_wrote_down_can_be_read_again(write):
    file = write("task: digits\nresolved: {anything: [1, 2]}\n")
    assert load_experiment(file, {}).resolved == {"anything": [1, 2]}


def test_mistakes_of_a_file_are_told_at_once(write):
    with pytest.raises(ConfigError, match=r"exp\.yaml:") as caught:
        load_experiment(write("tsk: digits\nseed: many\nmax_trials: 0\n"), {"task": "digits"})
    told = str(caught.value)
    assert "tsk: unknown key; did you mean 'task'?" in told
    assert "this key is required" not in told  # the flag gives it
    assert "seed: input should be a valid integer" in told
    assert "but got 'many'" in told
    assert "max_trials: input should be greater than or equal to 1, but got 0" in told


def test_a_task_that_neither_file_nor_flags_give_is_told_with_the_other_mistakes(write):
    with pytest.raises(ConfigError, match=r"exp\.yaml:") as caught:
        load_experiment(write("tsk: digits\nmax_trials: 0\n"), {"seed": 1})
    told = [line.strip().split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert sorted(told) == ["max_trials", "task", "tsk"]
    assert "task: this key is required" in str(caught.value)


def test_numbers_of_the_file_are_taken_as_the_texts_they_stand_for(write):
    loaded = load_experiment(write("task: digits\nmin_speedup: 2\nlabel_column: 1\n"), {})
    assert (loaded.min_speedup, loaded.label_column) == ("2", "1")


def test_a_mistake_of_the_flags_alone_is_named_so():
    with pytest.raises(ConfigError, match=r"^flags: max_trials: input should be greater than or equal to 1, but got 0"):
        load_experiment(None, {"task": "digits", "max_trials": 0})


def test_a_wrong_flag_over_a_sound_file_is_not_the_files_mistake(write):
    with pytest.raises(ConfigError, match=r"^flags: max_trials"):
        load_experiment(write("task: digits\n"), {"max_trials": 0})


def test_source_keys_are_settings():
    assert set(SOURCE_KEYS) <= set(Experiment.model_fields)
