"""The queries of a workload in one .npz file: one, or a list that every contestant answers in the same order.

One query is stored under the names of its inputs, ``input_ids``; of several the k-th (from 0) under
``input_ids#k``. Every query has the same names; shapes may differ.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.records import write_atomic

Query = dict[str, NDArray[Any]]


def pack_queries(queries: Sequence[Mapping[str, NDArray[Any]]]) -> bytes:
    """The bytes of a file that holds the queries; raises `MeasureError` when there are none or their names differ."""
    if not queries or any(set(query) != set(queries[0]) for query in queries):
        names = [sorted(query) for query in queries]
        raise MeasureError(f"a workload needs queries, all with the same inputs, but got {names or 'none'}")
    arrays = {
        name if len(queries) == 1 else f"{name}#{k}": array
        for k, query in enumerate(queries)
        for name, array in query.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write_queries(path: Path, queries: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Write the queries of a workload; a reader sees the old file or the new one."""
    write_atomic(path, pack_queries(queries))


def read_queries(path: str | Path) -> list[Query]:
    """The queries of a file, in their order; raises `MeasureError` when one of a list is missing."""
    queries: dict[int, Query] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            name, _, number = key.partition("#")
            queries.setdefault(int(number or 0), {})[name] = stored[key]
    if sorted(queries) != list(range(len(queries))) or len({frozenset(query) for query in queries.values()}) > 1:
        raise MeasureError(f"{path}: its queries are not whole: {', '.join(sorted(stored.files))}")
    return [queries[k] for k in range(len(queries))]
