"""What the probe's findings mean for budgets, precisions and learning rates."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.budgets import Budgets
from autocompress.errors import BudgetError, ExportError, StorageError
from autocompress.searching import probe as module
from autocompress.searching.probe import (
    DenseSetting,
    PrecisionFact,
    Probe,
    RateFact,
    check_reachable,
    check_size_reachable,
)
from tests.conftest import MakeSpace

PROBE = Probe(
    dense=(DenseSetting("openvino", 2, 0.008, 0.8), DenseSetting("onnxruntime", 2, 0.010, 1.0)),
    precisions=(
        PrecisionFact("int8-dynamic", 0.6, 0.59, 0.61, True, ""),
        PrecisionFact("int8", 0.5, 0.49, 0.51, True, ""),
        PrecisionFact("int4-weights", 1.3, 1.29, 1.31, False, "slower than int8"),
    ),
    smallest_latency_s=0.001,
    smallest_ratio_best_dense=0.125,
    dense_latency_s=0.010,
    rates=(RateFact(0.0, 0.2), RateFact(1e-4, 0.1), RateFact(1e-3, 0.4)),
    smallest_memory_bytes=60_000_000,
)


def test_fastest_dense_is_the_first() -> None:
    assert str(PROBE.best_dense) == "openvino, 2 threads"


def test_slower_precisions_are_dropped_and_the_fastest_kept_one_seeds() -> None:
    assert PROBE.dropped == {"int4-weights"}
    assert PROBE.fastest_precision == "int8"


def test_best_rate_is_the_nearest_to_dense_that_trains() -> None:
    assert PROBE.learning_rate == 1e-4


def test_json_round_trip() -> None:
    assert Probe.from_json(json.loads(json.dumps(PROBE.to_json()))) == PROBE


@pytest.mark.parametrize(
    "budgets",
    [
        Budgets(),
        Budgets(max_latency_s=0.0008),
        Budgets(min_speedup=10.0),
        Budgets(max_memory_bytes=48_000_000),
    ],
    ids=["none", "latency-just-reached", "speedup-just-reached", "memory-just-reached"],
)
def test_reachable_budgets_pass(budgets: Budgets) -> None:
    check_reachable(PROBE, budgets, "measured")


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (Budgets(max_latency_s=0.00079), r"--max-latency 0\.79 ms .* 1 ms to 10 ms"),
        (
            Budgets(min_speedup=10.1),
            r"--min-speedup 10\.1x .* up to 8x over the fastest dense fp32 \(openvino, 2 threads\)",
        ),
        (Budgets(max_memory_bytes=47_000_000), r"--max-memory 47 MB .* the smallest .* needs 60 MB"),
    ],
    ids=["latency", "speedup", "memory"],
)
def test_unreachable_budgets_name_the_range(budgets: Budgets, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        check_reachable(PROBE, budgets, "measured")


def test_a_range_that_was_not_measured_says_so() -> None:
    with pytest.raises(BudgetError, match="reachable here, predicted: 1 ms to 10 ms"):
        check_reachable(PROBE, Budgets(max_latency_s=0.0001), "predicted")


@pytest.mark.parametrize("by_size", [False, True])
def test_slow_precisions_are_kept_where_bytes_count(
    make_space: MakeSpace, monkeypatch: pytest.MonkeyPatch, by_size: bool
) -> None:
    """int4-weights take longer than int8 here, and are smaller."""
    ratios = {"int8": 0.5, "int4-weights": 1.3}
    built = lambda plan, *_args, **_more: SimpleNamespace(path=next(iter(plan.layers.values())).precision)  # noqa: E731
    monkeypatch.setattr(module, "build", built)
    timed = lambda path: SimpleNamespace(  # noqa: E731
        ratio=ratios[path.name], ratio_low=ratios[path.name] - 0.01, ratio_high=ratios[path.name] + 0.01
    )
    space = make_space({"layers": [{"match": "net.*", "precision": ["fp32", "int8", "int4-weights"]}]})
    profile = SimpleNamespace(runtime="onnxruntime", host_device="cpu", source="measured")
    shop = SimpleNamespace(root=Path("run"), bench=SimpleNamespace(measure=timed), profile=profile)
    said: list[str] = []
    facts = module.probe_precisions(shop, space, said.append, by_size)
    assert [(fact.precision, fact.kept) for fact in facts] == [("int8", True), ("int4-weights", by_size)]
    assert said[-1].endswith(
        "kept since bytes count" if by_size else "dropped: slower than int8 (1.30 against 0.50 of dense)"
    )


@pytest.mark.parametrize("fault", [None, ExportError, StorageError], ids=["all", "one fails", "full disk"])
def test_a_size_that_nothing_takes_is_refused(make_space, monkeypatch, tmp_path: Path, fault) -> None:
    """Files of 1000 bytes dense and 300 the least; what cannot be made is no candidate, and a full disk no answer."""
    dense, made = tmp_path / "dense.onnx", []
    dense.write_bytes(bytes(1000))
    shop = SimpleNamespace(bench=SimpleNamespace(dense=SimpleNamespace(path=dense)))

    def size(_plan, _shop):
        made.append(1)
        if fault is not None and len(made) == 1:
            raise fault("planted")
        return 300 + 100 * len(made)

    monkeypatch.setattr(module, "_file_bytes", size)
    space = make_space({"layers": [{"match": "net.*", "precision": ["fp32", "int8"], "share": "block"}]})

    def check(most):
        made.clear()
        check_size_reachable(PROBE, shop, space, Budgets(max_size_bytes=most))

    if fault is StorageError:
        with pytest.raises(StorageError):
            check(10)
        return
    least = 400 if fault is None else 500
    check(least)
    with pytest.raises(BudgetError, match=rf"reachable here: {least / 1e6:.3g} MB"):
        check(least // 2)
