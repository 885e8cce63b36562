"""Synthetic runs: a ViT-like one of 28 trials in all states, and a tiny one with hand values."""

from __future__ import annotations

import dataclasses
import random

import pytest

from autocompress.layers import Group, Layer, LayerTable, Slice, Stub
from autocompress.plan import Distill, Factorize, LayerPlan, Plan, Prune, Quantize
from autocompress.records import Artifact, Latency, Trial
from autocompress.report.view import RunView


def vit_table(blocks: int = 6, width: int = 192, heads: int = 6) -> LayerTable:
    """A ViT-like table: 6 linears in each block, a patch convolution and a head."""
    layers = [Layer("vit.embeddings.patch.projection", "conv", (width, 1, 4, 4), width * 17, width * 16 * 4)]
    groups = []
    for i in range(blocks):
        base = f"vit.encoder.layer.{i}"
        shapes = {
            "attention.attention.query": (width, width),
            "attention.attention.key": (width, width),
            "attention.attention.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (4 * width, width),
            "output.dense": (width, 4 * width),
        }
        layers += [
            Layer(f"{base}.{n}", "linear", s, s[0] * (s[1] + 1), 65 * s[0] * s[1], base) for n, s in shapes.items()
        ]
        names = tuple(f"{base}.{n}" for n in shapes)
        *inputs, output = (Slice(name, width // heads) for name in names[:4])
        up, down = Slice(names[4]), Slice(names[5])
        groups += [
            Group(f"{base}.attention/heads", "heads", heads, tuple(inputs), (output,), block=base),
            Group(f"{base}.mlp/neurons", "neurons", 4 * width, (up,), (down,), block=base),
            Group(base, "block", 1, block=base, removes=names, stubs=(Stub(base),)),
        ]
    layers.append(Layer("classifier", "linear", (10, width), 10 * (width + 1), 10 * width))
    return LayerTable(tuple(layers), tuple(groups), sum(la.params for la in layers))


def latency(ratio: float, dense_s: float = 4.1e-3, doubt: float = 0.02, **changes: object) -> Latency:
    """A measured latency of `ratio` to the fastest dense fp32, interval ± `doubt` of it."""
    values: dict[str, object] = {
        "latency_s": ratio * dense_s, "iqr_s": 0.02 * ratio * dense_s, "p90_s": 1.12 * ratio * dense_s,
        "ratio": ratio * 0.93, "ratio_low": ratio * 0.92, "ratio_high": ratio * 0.94,
        "ratio_best_dense": ratio, "ratio_best_dense_low": ratio * (1 - doubt),
        "ratio_best_dense_high": ratio * (1 + doubt), "source": "measured", "tier": "search",
        "runtime": "onnxruntime", "threads": 2, "blocks": 24, "rejected_blocks": 1, "queries": 960,
    }  # fmt: skip
    return Latency(**{**values, **changes})  # type: ignore[arg-type]


def artifact(plan: Plan, size_bytes: int) -> Artifact:
    path = f"artifacts/{plan.fingerprint}-r0/model.onnx"
    return Artifact(path, "onnx", size_bytes, "0" * 64, plan.fingerprint, 1.3e-6)


def random_plan(table: LayerTable, rng: random.Random, strength: float) -> Plan:
    """A plan that prunes, factorizes, quantizes and removes blocks, more so for a larger strength."""
    groups, layers = {}, {}
    for group in table.groups:
        if group.kind == "block":
            if rng.random() < 0.25 * strength:
                groups[group.name] = Prune(0)
        elif rng.random() < strength:
            groups[group.name] = Prune(max(1, round(group.size * (1 - strength * rng.random()))))
    for layer in table.layers:
        rank = Factorize(rng.choice([32, 64, 96])) if layer.kind == "linear" and rng.random() < 0.2 * strength else None
        precision = rng.choice(["int8", "int8", "int8-dynamic", "int4-weights"])
        bits = Quantize(precision) if rng.random() < strength else None  # type: ignore[arg-type]
        layers[layer.name] = LayerPlan(rank, bits)
    return Plan(groups, layers, Distill(0.5 + 0.4 * rng.random(), 2.0, 3e-4, 200) if strength else None)


def uniform_int8(table: LayerTable) -> Plan:
    return Plan(layers={la.name: LayerPlan(quantize=Quantize("int8")) for la in table.layers})


def trial(number: int, plan: Plan, state: str, origin: str, ratio: float, quality: float, **changes: object) -> Trial:
    """A measured trial with a file and stage seconds."""
    done = Trial(
        number, plan, state, origin, quality=quality, quality_stderr=0.004,  # type: ignore[arg-type]
        latency=latency(ratio), artifact=artifact(plan, int(11.4e6 * min(1.0, 0.15 + 0.8 * ratio))),
        seconds={"compress": 0.4, "recover": 3.1, "export": 0.9, "measure": 1.2, "score": 0.5},
        finished_s=6.2 * (number + 1),
    )  # fmt: skip
    return done.replace(**changes)


def make_vit_view() -> RunView:
    rng, table = random.Random(7), vit_table()
    trials = [
        trial(0, Plan(), "DONE", "dense", 1.0, 0.974, quality_test=0.971),
        trial(1, uniform_int8(table), "DONE", "uniform-int8", 0.61, 0.972, quality_test=0.970),
    ]
    for number in range(2, 28):
        strength = min(0.95, 0.2 + 0.03 * number + 0.1 * rng.random())
        ratio = max(0.12, 1.05 - strength * (0.8 + 0.25 * rng.random()))
        quality = 0.975 - 0.045 * strength**3 * rng.random() - (0.35 if number in (9, 22) else 0.0)
        state, origin = ("INFEASIBLE", "sampled") if ratio > 0.5 else ("DONE", "uniform" if number < 5 else "sampled")
        plan = random_plan(table, rng, strength)
        trials.append(trial(number, plan, state, origin, ratio, round(quality, 4)))
    nothing = {"latency": None, "quality": None, "quality_stderr": None, "artifact": None}
    reason = "export: the artefact differs from the torch model by 0.31 of its largest output"
    trials[13] = trials[13].replace(state="FAILED", error=reason, seconds={"compress": 0.4, "recover": 3.0}, **nothing)
    trials[18] = trials[18].replace(state="FAILED", error="interrupted", seconds={"compress": 0.4}, **nothing)
    front, best = [], 0.0
    for one in sorted(
        (t for t in trials if t.measured and t.state == "DONE"), key=lambda t: t.latency.ratio_best_dense
    ):
        assert one.quality is not None
        if one.quality > best:
            front.append(one.fingerprint)
            best = one.quality
    known = {"DONE", "INFEASIBLE"}
    trials = [
        t.replace(
            quality_test=round(t.quality - 0.003 + 0.002 * rng.random(), 4),
            latency=latency(t.latency.ratio_best_dense, tier="report", warnings=("the machine was busy in 2 blocks",)),
        )
        if t.fingerprint in front and t.state in known and t.latency and t.quality
        else t
        for t in trials
    ]
    return RunView(
        name="digits-vit", trials=tuple(trials), front=tuple(front), table=table,
        experiment={
            "model": "digits", "space": "transformer", "seed": 0, "trials": 28,
            "budgets": {"latency": "2x", "max_drop": 0.01}, "workload": {"batch": 1, "shape": [1, 1, 8, 8]},
        },
        environment={
            "cpu": {"model": "Intel Xeon @ 2.50GHz", "cores": 2, "flags": ["avx512f", "avx512_vnni"]},
            "versions": {"onnxruntime": "1.31.0", "openvino": "2026.4", "torch": "2.13.0"},
            "git": "3f2c1aa", "threads": 2,
        },
        probe={
            "dense": [
                {"runtime": "onnxruntime", "threads": 1, "latency_s": 6.9e-3},
                {"runtime": "onnxruntime", "threads": 2, "latency_s": 4.4e-3},
                {"runtime": "openvino", "threads": 2, "latency_s": 4.1e-3},
                {"runtime": "torch", "threads": 2, "latency_s": 9.8e-3},
            ],
            "best_dense": {"runtime": "openvino", "threads": 2, "latency_s": 4.1e-3},
            "precisions": [
                {"precision": "int8-dynamic", "ratio": 0.71, "low": 0.69, "high": 0.73, "kept": True, "why": ""},
                {"precision": "int8", "ratio": 0.48, "low": 0.47, "high": 0.50, "kept": True, "why": ""},
                {"precision": "int4-weights", "ratio": 0.92, "low": 0.89, "high": 0.96, "kept": False,
                 "why": "slower than int8, which is heavier"},
            ],
            "reachable": {"smallest_latency_s": 0.44e-3, "dense_latency_s": 4.1e-3},
        },
        metric="accuracy", maximize=True, quality_dense=0.974, quality_dense_test=0.971,
        budgets=("at least 2x faster than the fastest dense fp32", "at most 1 point below dense accuracy"),
        status="finished: 28 candidates in 182 s", folder="runs/digits-vit",
    )  # fmt: skip


def make_tiny_view() -> RunView:
    """One linear layer in one block; dense, one over budget, two on the front, one failed."""
    table = LayerTable(
        (Layer("net.0.fc", "linear", (8, 4), 40, 32, "net.0"), Layer("net.1.fc", "linear", (8, 8), 72, 64, "net.1")),
        tuple(Group(b, "block", 1, block=b, removes=(f"{b}.fc",), stubs=(Stub(b),)) for b in ("net.0", "net.1")),
        112,
    )
    int8, int4 = (
        Plan(layers={"net.0.fc": LayerPlan(quantize=Quantize(p))})  # type: ignore[arg-type]
        for p in ("int8", "int4-weights")
    )
    rank, gone = Plan(layers={"net.1.fc": LayerPlan(Factorize(2))}), Plan({"net.0": Prune(0)})
    trials = (
        trial(0, Plan(), "INFEASIBLE", "dense", 1.0, 0.9),
        trial(1, int8, "DONE", "sampled", 0.5, 0.9, quality_test=0.89, what="int8"),
        trial(2, int4, "FAILED", "sampled", 1.0, 0.0).replace(
            latency=None, quality=None, artifact=None, error="no kernel"
        ),
        trial(3, rank, "INFEASIBLE", "sampled", 0.8, 0.88),
        trial(4, gone, "DONE", "sampled", 0.25, 0.85, quality_test=0.84, what="1 of 2 blocks removed"),
    )
    front = (gone.fingerprint, int8.fingerprint)
    return RunView("tiny", trials, front, table, {}, {}, {}, "accuracy", True, 0.9, 0.9, (), "finished")


def make_confirmed_view() -> RunView:
    """The tiny run with a confirm part, on which every quality is 0.01 less; its two front points are tied."""
    view = make_tiny_view()
    trials = tuple(
        t if t.quality is None else t.replace(quality_confirm=round(t.quality - 0.01, 4), quality_confirm_stderr=0.006)
        for t in view.trials
    )
    ties = {view.front[1]: (view.front[0],)}
    return dataclasses.replace(view, trials=trials, quality_dense=0.89, part="confirm", divided=True, ties=ties)


def make_empty_view() -> RunView:
    return RunView("empty", (), (), vit_table(), {}, {}, {}, "accuracy", True, 0.9, None, (), "not started")


@pytest.fixture(scope="session")
def vit_view() -> RunView:
    return make_vit_view()


@pytest.fixture(scope="session")
def tiny_view() -> RunView:
    return make_tiny_view()


@pytest.fixture(scope="session")
def confirmed_view() -> RunView:
    return make_confirmed_view()


@pytest.fixture(scope="session")
def empty_view() -> RunView:
    return make_empty_view()
