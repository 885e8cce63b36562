"""A folder of tensors that are computed once. Knows files, keys and room on the disk; nothing of models.

An entry is one safetensors file, named by its kind and by the sha256 of what it was computed from, and it carries the
sha256 of its content: a file that is torn, edited or another's is computed again. Files are written aside and renamed,
so that any number of processes can share the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from autocompress.records import write_atomic

Tensors = dict[str, Tensor]

#: Bytes of entries that are kept in memory, the last used ones.
MEMORY_BYTES = 128_000_000

#: Seconds after which an entry that is not used is worth half.
HALF_LIFE_S = 3600.0

#: Kinds that are never removed to make room: plans name them, and nothing can compute them again.
PROTECTED = ("weights",)

#: Seconds after which a file that was being written belongs to a process that was killed.
ABANDONED_S = 3600.0

_SUFFIX = ".safetensors"

#: What opening an entry raises that another process removes or tears; torch, below safetensors, says RuntimeError.
_UNREADABLE = (OSError, RuntimeError, safetensors.SafetensorError)


def digest(value: Tensor) -> str:
    """The sha256 of a tensor's type, shape and bytes."""
    found = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode())
    found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_all(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of several tensors and their names, in any order."""
    return _sha256([[name, digest(tensors[name])] for name in sorted(tensors)])


def _sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class _Entry:
    """One file as the disk shows it."""

    key: str
    path: Path
    size: int
    used: float


class Store:
    """Entries of tensors in `folder`, found by what they were computed from.

    What `get`, `put` and `of` return is shared: never edit it.

    Args:
        folder: made when the first entry is written.
        limit_bytes: over it, the least useful entries are removed; None for no limit. Useful is what took long to
            compute per byte, is used often (by this process), and was used lately (by any; half per `HALF_LIFE_S`).
            Entries that a call in progress holds, and kinds that are `PROTECTED`, stay, even if they alone are over it.
        memory_bytes: of entries that are kept in memory beside.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.memory_bytes = memory_bytes
        self._memory: OrderedDict[str, Tensors] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._sweep()

    @staticmethod
    def key(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Tensor | str]) -> str:
        """Name of an entry: its kind, and the sha256 of kind, settings and inputs (a str stands for its tensor)."""
        named = {name: value if isinstance(value, str) else digest(value) for name, value in inputs.items()}
        return f"{kind}-{_sha256([kind, dict(settings), named])}"

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / f"{key}{_SUFFIX}"

    def get(self, key: str) -> Tensors | None:
        """An entry's tensors; None where there is none, or what is there is not whole."""
        found = self._memory.get(key)
        if found is None:
            found = _read(self.path(key), key)
            if found is None:
                return None
            with contextlib.suppress(OSError):
                os.utime(self.path(key))
            self._remember(key, found)
        else:
            self._memory.move_to_end(key)
        self._uses[key] += 1
        self._used[key] = time.time()
        return found

    def has(self, key: str) -> bool:
        """Whether there is an entry; its content is looked at when it is read."""
        return key in self._memory or self.path(key).is_file()

    def put(self, key: str, tensors: Mapping[str, Tensor], seconds: float = 0.0) -> Tensors:
        """Write an entry, and remove the least useful ones where the limit asks for it.

        Args:
            key: from `key`.
            tensors: by name.
            seconds: that it took to compute them.

        Raises:
            StorageError: the disk refused the write.
        """
        made = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
        meta = {"key": key, "content": digest_all(made), "seconds": repr(seconds)}
        write_atomic(self.path(key), safetensors.torch.save(made, meta))
        self._seconds[key] = seconds
        self._used[key] = time.time()
        self._remember(key, made)
        with self.hold(key):
            self.trim()
        return made

    def of(
        self,
        kind: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Tensor | str],
        compute: Callable[[], Mapping[str, Tensor]],
    ) -> Tensors:
        """What `compute` gives for these settings and inputs: from memory, from the disk, or computed now."""
        key = self.key(kind, settings, inputs)
        with self.hold(key, *(value for value in inputs.values() if isinstance(value, str))):
            found = self.get(key)
            if found is None:
                start = time.perf_counter()
                made = compute()
                found = self.put(key, made, time.perf_counter() - start)
        return found

    @contextlib.contextmanager
    def hold(self, *keys: str) -> Iterator[None]:
        """Entries that are needed until the end and not removed before."""
        self._held.update(keys)
        try:
            yield
        finally:
            self._held.subtract(keys)
            self._held += Counter()  # drops the zeros

    def trim(self) -> None:
        """Remove the least useful entries until the limit is kept."""
        if self.limit_bytes is None:
            return
        entries = list(self._entries())
        over = sum(entry.size for entry in entries) - self.limit_bytes
        if over <= 0:
            return
        now = time.time()
        for entry in sorted(entries, key=lambda e: (self._worth(e, now), e.key)):
            if over <= 0:
                break
            if entry.key not in self._held and not entry.key.startswith(tuple(f"{kind}-" for kind in PROTECTED)):
                entry.path.unlink(missing_ok=True)
                over -= entry.size

    def size_bytes(self) -> int:
        """Bytes of all entries on the disk."""
        return sum(entry.size for entry in self._entries())

    def _entries(self) -> Iterator[_Entry]:
        if not self.folder.is_dir():
            return
        for item in os.scandir(self.folder):
            if item.name.endswith(_SUFFIX) and not item.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # another process made room
                    stat = item.stat()
                    yield _Entry(item.name.removesuffix(_SUFFIX), Path(item.path), stat.st_size, stat.st_mtime)

    def _worth(self, entry: _Entry, now: float) -> float:
        if entry.key not in self._seconds:
            self._seconds[entry.key] = _seconds_of(entry.path)
        age = max(0.0, now - max(entry.used, self._used.get(entry.key, 0.0)))
        often = self._seconds[entry.key] * (1 + self._uses[entry.key]) / max(entry.size, 1)
        return often * math.exp2(-age / HALF_LIFE_S)

    def _remember(self, key: str, tensors: Tensors) -> None:
        self._memory[key] = tensors
        self._memory.move_to_end(key)
        total = sum(_bytes(found) for found in self._memory.values())
        while self._memory and total > self.memory_bytes:
            total -= _bytes(self._memory.popitem(last=False)[1])

    def _sweep(self) -> None:
        """Remove what processes that were killed left half written."""
        if not self.folder.is_dir():
            return
        for item in self.folder.glob(f".*{_SUFFIX}.*"):
            with contextlib.suppress(OSError):
                if time.time() - item.stat().st_mtime > ABANDONED_S:
                    item.unlink()


def _bytes(tensors: Tensors) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _read(path: Path, key: str) -> Tensors | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            # in memory of their own: a file's are not aligned, and sums depend on it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except _UNREADABLE:
        return None
    whole = meta.get("key") == key and meta.get("content") == digest_all(tensors)
    return tensors if whole else None


def _seconds_of(path: Path) -> float:
    """Seconds that an entry took to compute, from its file; 0 for what is no entry."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return float((file.metadata() or {}).get("seconds", 0.0))
    except (*_UNREADABLE, ValueError):
        return 0.0
