"""Oracles: what psutil and the profile files say; messages written by hand."""

from __future__ import annotations

import json
import os

import pytest
from pydantic import ValidationError

from autocompress.errors import ProfileError
from autocompress.hardware import Workload, load_profile
from autocompress.processors import cores
from autocompress.runtimes import RUNTIMES

CHIP = """
latencies: analytic
chip:
  name: Chip
  source: by hand
  peaks: {fp32: 1.0e+9, int8: 4.0e+9}
  bandwidth: 1.0e+9
  kernel_overhead_s: 0
  query_overhead_s: 0
"""


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
    monkeypatch.setattr("autocompress.hardware.allowed_threads", lambda: {0, 1})
    with pytest.raises(ProfileError, match=r"mine\.yaml: threads must be 1 to 2 on this machine, or auto, but got 8"):
        load_profile(write("threads: 8\nprecisions: {}\n"))
    assert load_profile(write("threads: 2\nprecisions: {}\n")).threads == 2


def test_hardware_threads_may_be_asked_for_by_number(write, monkeypatch):
    monkeypatch.setattr("autocompress.hardware.cores", lambda: 2)
    monkeypatch.setattr("autocompress.hardware.allowed_threads", lambda: {0, 1, 2, 3})
    assert load_profile(write("threads: 4\nprecisions: {}\n")).threads == 4
    assert load_profile(write("threads: auto\nprecisions: {}\n")).threads == 2


def test_threads_above_the_machine_are_told_with_the_other_mistakes(write, monkeypatch):
    monkeypatch.setattr("autocompress.hardware.cores", lambda: 2)
    monkeypatch.setattr("autocompress.hardware.allowed_threads", lambda: {0, 1})
    with pytest.raises(ProfileError, match=r"(?s)(?=.*threads must be 1 to 2)(?=.*runtme: unknown key)"):
        load_profile(write("threads: 8\nruntme: openvino\nprecisions: {}\n"))


def test_several_mistakes_are_told_at_once(write):
    text = "threads: 0\nruntime: tensorrt\nprecisions: {linear: [int9]}\ntiming: {min_bloks: 9, min_blocks: 3}\n"
    with pytest.raises(ProfileError, match=r"mine\.yaml:") as caught:
        load_profile(write(text))
    told = str(caught.value)
    for line in (
        "threads: input should be greater than or equal to 1, but got 0",
        "runtime: value error, there is no such runtime; known: onnxruntime, openvino",
        "but got 'tensorrt'",
        "precisions.linear.0: input should be 'fp32', 'fp16', 'fp8', 'int8-dynamic'",
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


def test_precisions_left_out_are_what_the_runtime_claims(write):
    loaded = load_profile(write("runtime: openvino\n"))
    assert loaded.precisions == dict(sorted(RUNTIMES["openvino"].kernels.items()))


def test_a_device_that_the_runtime_does_not_know_is_refused(write):
    with pytest.raises(ProfileError, match="device: value error, openvino runs on cpu, but got 'cuda'"):
        load_profile(write("runtime: openvino\ndevice: cuda\n"))
    with pytest.raises(ProfileError, match="device: input should be 'cpu' or 'cuda', but got 'tpu'"):
        load_profile(write("device: tpu\n"))


def test_files_run_where_they_are_measured_or_else_on_this_cpu(write, monkeypatch):
    monkeypatch.setattr("autocompress.hardware.cores", lambda: 2)
    here, chip = load_profile(write("threads: 1\n")), load_profile(write("threads: 8\n" + CHIP))
    assert (here.host_threads, here.host_device) == (1, "cpu")
    assert (chip.threads, chip.host_threads, chip.host_device) == (8, 2, "cpu")


def test_an_analytic_profile_has_one_thread_unless_given(write):
    loaded = load_profile(write(CHIP))
    assert loaded.threads == 1
    assert loaded.chip.peaks == {"fp32": 1e9, "int8": 4e9}


def test_auto_threads_are_for_measured_profiles(write):
    with pytest.raises(ProfileError, match=r"(?s)auto counts this machine's cores, and latencies are analytic.*device"):
        load_profile(write("threads: auto\n" + CHIP))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("latencies: analytic", "latencies: measured"),
            "chip: value error, a profile with latencies: measured has no",
        ),
        (("int8: 4.0e+9", "int1: 4.0e+9"), "chip.bit_serial: value error, a chip that is not bit-serial needs a peak"),
        (("bandwidth: 1.0e+9", "bandwidth: 0"), "chip.bandwidth: input should be greater than 0, but got 0"),
        (("int8: 4.0e+9", "int9: 4.0e+9"), "chip.peaks.int9.[key]: input should be 'fp32', 'tf32'"),
        (("name: Chip", "bit_serial: true"), "chip.bit_serial: value error, a bit-serial chip has one peak, int1"),
        (("name: Chip", "bandwith: 1"), "chip.bandwith: unknown key; did you mean 'bandwidth'"),
    ],
)
def test_a_wrong_chip_is_refused(write, change, told):
    with pytest.raises(ProfileError) as caught:
        load_profile(write(CHIP.replace(*change)))
    assert told in str(caught.value)


def test_a_chips_mistakes_are_told_at_once(write):
    more = """\
  efficiency: {fp16: 0.5, fp32: 1.5}
  arithmetic: {int4-weights: fp16}
  power: {busy_w: 3, idle_w: 5}
"""
    with pytest.raises(ProfileError) as caught:
        load_profile(write(CHIP + more))
    for line in (
        "chip.efficiency.fp32: input should be less than or equal to 1, but got 1.5",
        "chip.arithmetic: value error, fp16 without a peak; there are peaks for fp32, int8, but got",
        "chip.power: value error, busy_w must be at least idle_w, 5, but got",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("power", "told"),
    [
        ("{idle_w: 3}", "give busy_w, or op_j together with byte_j"),
        ("{busy_w: 3, op_j: {fp32: 1, int8: 1}, byte_j: 1}", "give busy_w, or op_j together with byte_j"),
        ("{op_j: {fp32: 1}, byte_j: 1}", "op_j has no joules for int8"),
    ],
)
def test_power_is_in_watts_or_in_joules(write, power, told):
    with pytest.raises(ProfileError, match=told):
        load_profile(write(f"{CHIP}  power: {power}\n"))


def test_analytic_and_recorded_profiles_need_what_they_are_made_of(write):
    with pytest.raises(ProfileError, match="chip: value error, a profile with latencies: analytic needs it, but got N"):
        load_profile(write("latencies: analytic\n"))
    with pytest.raises(ProfileError, match="table: value error, a profile with latencies: recorded needs it, but got"):
        load_profile(write("latencies: recorded\nthreads: 1\n"))


@pytest.fixture
def table(tmp_path):
    """A table as a device with 64 cores wrote it."""
    taken = {"name": "cpu", "runtime": "openvino", "device": "cpu", "threads": 64, "latencies": "measured"}
    taken |= {"workload": {"batch": 4}, "precisions": {"linear": ["int8"]}, "table": None, "chip": None}
    path = tmp_path / "device.json"
    path.write_text(json.dumps({"profile": taken, "rows": []}))
    return path


def test_a_table_is_a_profile(table):
    loaded = load_profile(table)
    assert (loaded.name, loaded.latencies, loaded.runtime, loaded.threads) == ("device", "recorded", "openvino", 64)
    assert loaded.table == table
    assert loaded.workload == Workload(batch=4)
    assert loaded.precisions == {"linear": ("fp32", "int8")}
    assert loaded.host_threads == cores()


def test_a_recorded_profile_takes_what_it_does_not_say_from_its_table(write, table):
    loaded = load_profile(write("latencies: recorded\ntable: device.json\nname: mine\nrounding: {neurons: 32}\n"))
    assert (loaded.name, loaded.rounding.neurons) == ("mine", 32)
    assert loaded.model_copy(update={"name": "device", "rounding": load_profile(table).rounding}) == load_profile(table)


def test_a_recorded_profile_cannot_change_how_its_table_was_taken(write, table):
    text = "latencies: recorded\ntable: device.json\nthreads: 2\nworkload: {batch: 1}\nruntime: openvino\n"
    with pytest.raises(ProfileError) as caught:
        load_profile(write(text))
    told = str(caught.value)
    assert "threads: the table was recorded with 64, but got 2" in told
    assert "workload: the table was recorded with {'batch': 4}, but got {'batch': 1}" in told
    assert "runtime" not in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"device\.json: no such file; autocompress record writes such files"),
        ("{", r"device\.json: cannot be read: Expecting property name"),
        ("[]", r"device\.json: holds no profile; autocompress record writes such files"),
    ],
)
def test_a_table_that_is_none_is_refused(write, tmp_path, content, told):
    if content is not None:
        (tmp_path / "device.json").write_text(content)
    with pytest.raises(ProfileError, match=told):
        load_profile(tmp_path / "device.json")
    with pytest.raises(ProfileError, match=told):
        load_profile(write("latencies: recorded\ntable: device.json\n"))


def test_the_lengths_of_a_generation_belong_together(write):
    with pytest.raises(ProfileError, match="workload: value error, give prompt_length and new_tokens, or neither"):
        load_profile(write("workload: {prompt_length: 8}\n"))
