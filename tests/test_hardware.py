"""Oracles: what psutil and the profile files say; messages written by hand."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from autocompress.errors import ProfileError
from autocompress.hardware import cores, load_profile


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return file

    return make


def test_cores_are_between_one_and_the_logical_cpus():
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_threads_auto_and_no_threads_become_the_cores(write):
    assert load_profile(write("threads: auto\nprecisions: {linear: [int8]}\n")).threads == cores()
    assert load_profile(write("precisions: {linear: [int8]}\n")).threads == cores()


def test_the_name_is_the_file_unless_given(write):
    assert load_profile(write("precisions: {}\n")).name == "mine"
    assert load_profile(write("name: other\nprecisions: {}\n")).name == "other"


def test_precisions_are_ordered_heavy_first_and_always_hold_fp32(write):
    loaded = load_profile(write("precisions: {linear: [int4-weights, int8, int8-dynamic], conv: []}\n"))
    assert loaded.precisions == {"conv": ("fp32",), "linear": ("fp32", "int8-dynamic", "int8", "int4-weights")}


def test_threads_above_the_machine_are_refused(write, monkeypatch):
    monkeypatch.setattr("autocompress.hardware.cores", lambda: 2)
    with pytest.raises(ProfileError, match=r"mine\.yaml: threads must be 1 to 2 on this machine, or auto, but got 8"):
        load_profile(write("threads: 8\nprecisions: {}\n"))
    assert load_profile(write("threads: 2\nprecisions: {}\n")).threads == 2


def test_threads_above_the_machine_are_told_with_the_other_mistakes(write, monkeypatch):
    monkeypatch.setattr("autocompress.hardware.cores", lambda: 2)
    with pytest.raises(ProfileError, match=r"(?s)(?=.*threads must be 1 to 2)(?=.*runtme: unknown key)"):
        load_profile(write("threads: 8\nruntme: openvino\nprecisions: {}\n"))


def test_several_mistakes_are_told_at_once(write):
    text = "threads: 0\nruntime: tensorrt\nprecisions: {linear: [int9]}\ntiming: {min_bloks: 9, min_blocks: 3}\n"
    with pytest.raises(ProfileError, match=r"mine\.yaml:") as caught:
        load_profile(write(text))
    told = str(caught.value)
    for line in (
        "threads: input should be greater than or equal to 1, but got 0",
        "runtime: input should be 'onnxruntime' or 'openvino', but got 'tensorrt'",
        "precisions.linear.0: input should be 'fp32', 'fp16', 'int8-dynamic'",
        "but got 'int9'",
        "timing.min_blocks: input should be greater than or equal to 7, but got 3",
        "timing.min_bloks: unknown key; did you mean 'min_blocks'",
    ):
        assert line in told


def test_a_layer_kind_that_does_not_exist_is_refused(write):
    with pytest.raises(ProfileError, match=r"precisions\.lstm.*'linear', 'conv' or 'embedding'"):
        load_profile(write("precisions: {lstm: [int8]}\n"))


def test_an_unknown_profile_shows_near_names():
    with pytest.raises(ProfileError, match="hardware_profiles has no 'cpu-1-thred'; did you mean 'cpu-1-thread'"):
        load_profile("cpu-1-thred")


def test_a_profile_is_frozen(profile):
    with pytest.raises(ValidationError, match="frozen"):
        profile.threads = 4
