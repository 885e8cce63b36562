"""Oracles: what was computed the first time, counted calls, and the sizes and names of the files on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from autocompress.compressing.store import ABANDONED_S, Store, digest, digest_all
from autocompress.errors import StorageError


class Counted:
    """Computes a constant and counts how often."""

    def __init__(self, value: Tensor | None = None) -> None:
        self.value = torch.arange(6.0).reshape(2, 3) if value is None else value
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return {"value": self.value}


def fill(store: Store, count: int, size: int = 1000) -> list[str]:
    """`count` entries of `size` floats that took 1, 2, 3 … seconds."""
    keys = [Store.key("entry", {"number": number}, {}) for number in range(count)]
    for number, key in enumerate(keys):
        store.put(key, {"value": torch.full((size,), float(number))}, seconds=number + 1.0)
    return keys


def test_an_entry_is_computed_once_and_equal_in_every_store(tmp_path: Path) -> None:
    compute = Counted(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    for store in (Store(tmp_path), Store(tmp_path)):
        for _ in range(2):
            assert torch.equal(store.of("entry", {"a": 1}, {}, compute)["value"], compute.value)
    assert compute.calls == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 2)])
def test_types_and_shapes_come_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.ones(shape).to(dtype)
    Store(tmp_path).put("entry-1", {"value": value})
    found = Store(tmp_path).get("entry-1")
    assert found is not None
    torch.testing.assert_close(found["value"], value, rtol=0, atol=0)


def test_a_transposed_tensor_is_stored_as_it_reads(tmp_path: Path) -> None:
    value = torch.arange(6.0).reshape(2, 3).T
    Store(tmp_path).put("entry-1", {"value": value})
    found = Store(tmp_path).get("entry-1")
    assert found is not None
    assert torch.equal(found["value"], value)


@pytest.mark.parametrize(
    ("kind", "settings", "inputs"),
    [
        pytest.param("other", {"a": 1}, {"x": torch.zeros(2)}, id="kind"),
        pytest.param("entry", {"a": 2}, {"x": torch.zeros(2)}, id="settings"),
        pytest.param("entry", {"a": 1}, {"y": torch.zeros(2)}, id="name"),
        pytest.param("entry", {"a": 1}, {"x": torch.zeros(2, dtype=torch.float64)}, id="type"),
        pytest.param("entry", {"a": 1}, {"x": torch.zeros(2, 1)}, id="shape"),
        pytest.param("entry", {"a": 1}, {"x": torch.tensor([0.0, 1.0])}, id="values"),
    ],
)
def test_a_key_tells_apart(kind: str, settings: dict[str, int], inputs: dict[str, Tensor]) -> None:
    assert Store.key(kind, settings, inputs) != Store.key("entry", {"a": 1}, {"x": torch.zeros(2)})


def test_a_digest_stands_for_its_tensor_in_a_key() -> None:
    value = torch.randn(3)
    assert Store.key("entry", {}, {"x": value}) == Store.key("entry", {}, {"x": digest(value)})


def test_digests_do_not_depend_on_strides_or_on_order() -> None:
    value = torch.arange(6.0).reshape(2, 3)
    assert digest(value.T) == digest(value.T.contiguous()) != digest(value)
    assert digest_all({"a": value, "b": value + 1}) == digest_all({"b": value + 1, "a": value})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another(path: Path) -> None:
    other = Store(path.parent)
    key = Store.key("entry", {"a": 2}, {})
    other.put(key, {"value": torch.zeros(2, 3)})
    os.replace(other.path(key), path)


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"value": torch.zeros(2, 3)}, path)


@pytest.mark.parametrize("spoil", [_cut, _flip, _empty, _of_another, _foreign])
def test_a_file_that_is_not_whole_or_not_its_own_is_computed_again(tmp_path: Path, spoil) -> None:
    compute = Counted()
    Store(tmp_path).of("entry", {"a": 1}, {}, compute)
    spoil(Store(tmp_path).path(Store.key("entry", {"a": 1}, {})))
    for calls in (2, 2):
        found = Store(tmp_path).of("entry", {"a": 1}, {}, compute)
        assert torch.equal(found["value"], compute.value)
        assert compute.calls == calls


def test_the_limit_is_kept_and_what_took_longest_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=20_000)
    keys = fill(store, 8)
    assert store.size_bytes() <= 20_000
    assert [Store(tmp_path).has(key) for key in keys] == [False] * 4 + [True] * 4


def test_without_a_limit_all_stay(tmp_path: Path) -> None:
    assert all(Store(tmp_path).has(key) for key in fill(Store(tmp_path), 8))


def test_the_larger_of_two_equally_slow_entries_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("entry-large", {"value": torch.zeros(3000)}, seconds=1.0)
    store.put("entry-small", {"value": torch.zeros(1000)}, seconds=1.0)
    limited = Store(tmp_path, limit_bytes=10_000)
    limited.trim()
    assert not limited.has("entry-large")
    assert limited.has("entry-small")


def test_what_was_not_used_for_hours_goes_before_what_was_used_now(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = fill(store, 3)
    for key in keys[1:]:
        long_ago = time.time() - 24 * 3600
        os.utime(store.path(key), (long_ago, long_ago))
    Store(tmp_path, limit_bytes=5_000).trim()
    assert [Store(tmp_path).has(key) for key in keys] == [True, False, False]


def test_what_is_used_often_stays(tmp_path: Path) -> None:
    fill(Store(tmp_path), 3)
    store = Store(tmp_path, limit_bytes=5_000)
    keys = [Store.key("entry", {"number": number}, {}) for number in range(3)]
    for _ in range(10):
        store.get(keys[0])
    store.trim()
    assert [Store(tmp_path).has(key) for key in keys] == [True, False, False]


def test_what_a_call_in_progress_needs_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=5_000)
    store.put("entry-needed", {"value": torch.zeros(1000)})
    with store.hold("entry-needed"):
        fill(store, 3)
        assert store.path("entry-needed").is_file()
    fill(store, 3)
    assert not store.path("entry-needed").is_file()


def test_whole_weights_are_never_removed_to_make_room(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=1_000)
    store.put("weights-1", {"value": torch.zeros(1000)})
    keys = fill(store, 3)
    store.trim()
    assert store.path("weights-1").is_file()
    assert not any(store.path(key).is_file() for key in keys)


def test_an_entry_larger_than_the_limit_is_still_answered(tmp_path: Path) -> None:
    compute = Counted(torch.ones(1000))
    assert torch.equal(Store(tmp_path, limit_bytes=10).of("entry", {}, {}, compute)["value"], compute.value)


def test_memory_holds_no_more_than_it_may(tmp_path: Path) -> None:
    store = Store(tmp_path, memory_bytes=10_000)
    keys = fill(store, 8)
    for key in keys:
        store.path(key).unlink()
    assert [store.get(key) is not None for key in keys] == [False] * 6 + [True] * 2


def test_leftovers_of_killed_processes_are_swept_and_fresh_ones_stay(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".entry-1.safetensors.abc", tmp_path / ".entry-2.safetensors.abc"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * ABANDONED_S))
    Store(tmp_path)
    assert [path.exists() for path in (old, fresh)] == [False, True]


def test_an_entry_that_goes_while_it_is_opened_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path, **_how: object) -> None:
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")

    keys = fill(Store(tmp_path), 2)
    monkeypatch.setattr(safetensors, "safe_open", gone)
    store = Store(tmp_path, limit_bytes=1, memory_bytes=0)
    assert store.get(keys[0]) is None
    store.put("entry-new", {"value": torch.zeros(1)})  # makes room, for which it looks at all others
    assert not store.path(keys[0]).is_file()


def test_a_folder_that_refuses_writes_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        Store(tmp_path / "file").put("entry-1", {"value": torch.zeros(1)})


_WRITER = """
import sys, torch
from pathlib import Path
from autocompress.compressing.store import Store
store = Store(Path(sys.argv[1]), limit_bytes=60_000, memory_bytes=0)
for turn in range(3):
    for number in range(30):
        found = store.of("entry", {"n": number}, {}, lambda: {"value": torch.full((1000,), float(number))})
        assert torch.equal(found["value"], torch.full((1000,), float(number))), number
print("whole")
"""


def test_two_processes_at_once_read_and_write_whole_entries(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in running] == ["whole\n"] * 2
    store = Store(tmp_path)
    keys = [path.name.removesuffix(".safetensors") for path in tmp_path.glob("*.safetensors")]
    assert keys
    assert all(store.get(key) is not None for key in keys)
