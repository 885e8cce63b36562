"""Oracle: what was written is read again, and one query is a plain file of its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import MeasureError
from autocompress.measure.queries import read_queries, write_queries


def queries(*lengths: int) -> list[dict[str, np.ndarray]]:
    return [{"ids": np.arange(n)[None], "mask": np.ones((1, n), dtype=np.int64)} for n in lengths]


@pytest.mark.parametrize("lengths", [(4,), (4, 7), tuple(range(1, 14))], ids=["one", "two", "thirteen"])
def test_queries_come_back_in_their_order(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    write_queries(tmp_path / "q.npz", queries(*lengths))
    found = read_queries(tmp_path / "q.npz")
    assert [query["ids"].shape[1] for query in found] == list(lengths)
    for query, wanted in zip(found, queries(*lengths), strict=True):
        assert query.keys() == wanted.keys()
        assert all((query[name] == wanted[name]).all() for name in query)


def test_one_query_is_stored_under_its_own_names(tmp_path: Path) -> None:
    write_queries(tmp_path / "q.npz", queries(4))
    with np.load(tmp_path / "q.npz") as stored:
        assert sorted(stored.files) == ["ids", "mask"]


@pytest.mark.parametrize("bad", [[], [{"a": np.ones(1)}, {"b": np.ones(1)}]], ids=["none", "other_names"])
def test_queries_that_are_none_or_unlike_are_refused(tmp_path: Path, bad: list) -> None:
    with pytest.raises(MeasureError, match="a workload needs queries, all with the same inputs"):
        write_queries(tmp_path / "q.npz", bad)


@pytest.mark.parametrize(
    "arrays",
    [{"ids#0": np.ones(1), "ids#2": np.ones(1)}, {"ids#0": np.ones(1), "mask#0": np.ones(1), "ids#1": np.ones(1)}],
    ids=["one_missing", "an_input_missing"],
)
def test_a_list_with_a_gap_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "q.npz", **arrays)
    with pytest.raises(MeasureError, match=r"q\.npz: its queries are not whole"):
        read_queries(tmp_path / "q.npz")
