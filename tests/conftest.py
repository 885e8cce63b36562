"""Shared builders: a two-block encoder table, a profile, a space, trials. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from autocompress.hardware import HardwareProfile, Rounding
from autocompress.layers import Group, Layer, LayerTable, Slice, Stub
from autocompress.plan import Plan
from autocompress.records import Artifact, Latency, Trial
from autocompress.rules import SpaceRules
from autocompress.space import SearchSpace, build_space

settings.register_profile("autocompress", max_examples=50, deadline=None, database=None, derandomize=True)
settings.load_profile("autocompress")

ALL = ("fp32", "int8-dynamic", "int8", "int8-weights", "int4-weights")

MakeTrial = Callable[..., Trial]
MakeSpace = Callable[..., SearchSpace]


def encoder_table(blocks: int = 2, width: int = 8) -> LayerTable:
    """Embedding (50, 8); per block q, k, v, o (8, 8), up (16, 8), down (8, 16); a convolution; a classifier (3, 8).

    `width` takes the place of 8.
    """
    embedding = (50, width)
    layers = [Layer("embed", "embedding", embedding, 50 * width, 0, why_not={"factorize": "embeddings are looked up"})]
    groups = []
    for i in range(blocks):
        base = f"net.{i}"
        shapes = {**dict.fromkeys("qkvo", (width, width)), "up": (2 * width, width), "down": (width, 2 * width)}
        layers += [
            Layer(f"{base}.{n}", "linear", s, s[0] * (s[1] + 1), 10 * s[0] * s[1], base) for n, s in shapes.items()
        ]
        q, k, v, o, up, down = (f"{base}.{n}" for n in shapes)
        groups += [
            Group(
                f"{base}.attention/heads",
                "heads",
                4,
                tuple(Slice(name, width // 4) for name in (q, k, v)),
                (Slice(o, width // 4),),
                block=base,
            ),
            Group(f"{base}.mlp/neurons", "neurons", 2 * width, (Slice(up),), (Slice(down),), block=base),
            Group(base, "block", 1, block=base, removes=(q, k, v, o, up, down), stubs=(Stub(base),)),
        ]
    layers.append(Layer("conv", "conv", (4, 1, 3, 3), 40, 360, why_not={"factorize": "it is a convolution"}))
    layers.append(Layer("classifier", "linear", (3, width), 3 * width + 3, 3 * width))
    return LayerTable(tuple(layers), tuple(groups), sum(layer.params for layer in layers))


@pytest.fixture(autouse=True, scope="session")
def _locks_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests claim nothing about seconds, so they need not wait for whoever measures on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("locks")
        patch.setattr("autocompress.measure.lock.lock_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def make_table() -> Callable[[int], LayerTable]:
    return encoder_table


@pytest.fixture(scope="session")
def table() -> LayerTable:
    return encoder_table()


@pytest.fixture(scope="session")
def profile() -> HardwareProfile:
    """One thread, every precision that exists; widths in multiples of 4, ranks of 2."""
    return HardwareProfile(
        name="tiny", threads=1, rounding=Rounding(heads=1, neurons=4, rank=2),
        precisions={"linear": ALL, "conv": ALL, "embedding": ALL},
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_space(table: LayerTable, profile: HardwareProfile) -> MakeSpace:
    """``make_space({"groups": …}, **what build_space takes)``: the space of `table` on `profile`."""

    def make(rules: dict[str, object], **changes: object) -> SearchSpace:
        given = {"table": table, "profile": profile, **changes}
        return build_space(SpaceRules.model_validate({"name": "test", **rules}), **given)  # type: ignore[arg-type]

    return make


def _latency(best: float, doubt: float, **changes: object) -> Latency:
    """`best` is the ratio to the fastest dense, 10 ms; the ratio in the same runtime is the same; ± `doubt` of it."""
    low, high = best * (1 - doubt), best * (1 + doubt)
    values: dict[str, object] = {
        "latency_s": best * 0.010, "iqr_s": 1e-4, "p90_s": best * 0.011,
        "ratio": best, "ratio_low": low, "ratio_high": high,
        "ratio_best_dense": best, "ratio_best_dense_low": low, "ratio_best_dense_high": high,
        "source": "measured", "tier": "search", "runtime": "onnxruntime", "threads": 1,
        "blocks": 8, "rejected_blocks": 1, "queries": 64, "block_ratios": (best, best), "warnings": ("busy",),
    }  # fmt: skip
    return Latency(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_trial() -> MakeTrial:
    """``make_trial(number, ratio, quality, doubt=0.0, plan=…, **changes)``: a measured DONE trial; dense is 10 ms."""

    def make(
        number: int, ratio: float, quality: float, doubt: float = 0.0, plan: Plan | None = None, **changes: object
    ) -> Trial:
        plan = Plan(seed=number) if plan is None else plan
        folder = Path("artifacts") / f"{plan.fingerprint}-r0"
        artifact = Artifact(str(folder / "model.onnx"), "onnx", 1000 + number, "0" * 64, plan.fingerprint, 1e-6)
        trial = Trial(
            number, plan, "DONE", "sampled", proposal=number, quality=quality, latency=_latency(ratio, doubt),
            artifact=artifact, seconds={"measure": 0.5}, finished_s=1.5, what=f"candidate {number}",
        )  # fmt: skip
        return trial.replace(**changes)

    return make
