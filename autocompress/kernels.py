"""The verb `probe_kernels`: which precisions become kernels of their own on a device, and at which widths they pay.

Small chains of equal layers are built, exported and timed on the very path that candidates take.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autocompress.devices import open_bench
from autocompress.errors import AutocompressError, ConfigError, ProfileError
from autocompress.export.export import to_arrays
from autocompress.hardware import HardwareProfile
from autocompress.measure.queries import read_queries, write_queries
from autocompress.pipeline import build_into
from autocompress.plan import PRECISIONS, LayerPlan, Plan, Precision, Quantize
from autocompress.records import Source, aside
from autocompress.runtimes import kernels, model_file
from autocompress.survey import survey
from autocompress.tasks.task import Examples, Task
from autocompress.workshop import Workshop, open_workshop

Kind = Literal["linear", "conv"]

#: Equal layers in a chain: enough that what comes before and after them does not decide.
DEPTH = 4

#: Features of a linear, channels of a convolution; edge of its images.
WIDTHS: dict[Kind, tuple[int, ...]] = {"linear": (256, 768, 1536), "conv": (16, 64)}
EDGE = 32

#: Rows that a linear is given where the profile names no sequence.
ROWS = 128

SAMPLES = 8

#: Memory only: such layers compute in float.
STORED = ("int8-weights",)


@dataclass(frozen=True)
class KernelFact:
    """What one precision does to a chain of equal layers.

    Attributes:
        kind, width: "linear" with `width` features in and out, or "conv" (3x3) with so many channels.
        rows: of the input to a linear: batch times tokens; images to a convolution.
        precision: of all layers.
        ratio, low, high: latency to that of fp32, with its 95 % interval; None where it does not run.
        source: of the ratio; "predicted" by an analytic profile.
        computed_in: number formats that the runtime says it multiplied in, to how many of the products.
        kept: whether it is not slower than the next heavier precision that is kept.
        why: it is not, or it does not run.
    """

    kind: Kind
    width: int
    rows: int
    precision: Precision
    ratio: float | None
    low: float | None
    high: float | None
    source: Source
    computed_in: dict[str, int]
    kept: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def words(self) -> str:
        """One line."""
        found = f"{self.ratio:.2f} of fp32{aside(self.source)}" if self.ratio is not None else "does not run"
        return f"{self.kind} {self.width}, {self.rows} rows, {self.precision}: {found}"


class _Chain(nn.Module):
    """Equal layers with a ReLU between."""

    def __init__(self, kind: Kind, width: int) -> None:
        super().__init__()
        make = (
            (lambda: nn.Linear(width, width)) if kind == "linear" else (lambda: nn.Conv2d(width, width, 3, padding=1))
        )
        self.layers = nn.ModuleList([make() for _ in range(DEPTH)])

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths such as "256,768"; raises `ConfigError` naming the value that is none."""
    found = []
    for item in text.split(","):
        if not item.strip().isdigit():
            raise ConfigError(f"--widths {text!r}: {item.strip()!r} is no number; write them like 256,768")
        found.append(int(item))
    return tuple(found)


def probe_kernels(
    profile: HardwareProfile,
    widths: Iterable[int] | None = None,
    say: Callable[[KernelFact], None] = lambda _fact: None,
) -> tuple[KernelFact, ...]:
    """Time every precision that the profile offers against fp32, at some widths.

    Args:
        profile: measured, or analytic (then the facts are predictions).
        widths: features of linears; `WIDTHS` where left out. Convolutions are probed at theirs.
        say: is told each fact.

    Raises:
        ProfileError: the profile's latencies are recorded: its device is not here.
        ConfigError: a width is not a positive multiple of 32, which every precision can group.
    """
    if profile.latencies == "recorded":
        raise ProfileError(f"hardware profile {profile.name!r} is recorded: its device is not here to be probed")
    chosen = tuple(widths) if widths is not None else WIDTHS["linear"]
    wrong = [width for width in chosen if width < 1 or width % 32]
    if wrong:
        raise ConfigError(f"--widths: {wrong[0]} must be a multiple of 32")
    length = profile.workload.sequence_length or ROWS
    facts: list[KernelFact] = []
    for rows, width in itertools.product(sorted({1, length}), chosen):
        facts += _facts("linear", width, rows, profile, say)
    for width in WIDTHS["conv"]:
        facts += _facts("conv", width, 1, profile, say)
    return tuple(facts)


def _task(kind: Kind, width: int, rows: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, width) if kind == "linear" else (width, EDGE, EDGE)
    inputs = {"x": torch.randn(SAMPLES, *shape, generator=generator)}
    examples = Examples(inputs, torch.zeros(SAMPLES, dtype=torch.long))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Task(f"{kind}-{width}", _Chain(kind, width), examples, examples, examples)


def _facts(
    kind: Kind, width: int, rows: int, profile: HardwareProfile, say: Callable[[KernelFact], None]
) -> Iterator[KernelFact]:
    task, batch = _task(kind, width, rows), profile.workload.batch
    inputs = task.workload_inputs(batch, None)
    table = survey(task.source, inputs)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_queries(root / "inputs.npz", [to_arrays(inputs)])
        dense = root / "dense" / model_file(profile.runtime)
        with closing(open_bench(profile, root / "inputs.npz", dense, table)) as bench:
            shop = open_workshop(root, task, table, profile, bench)
            build_into(root / "dense", Plan(), shop, keep_weights=False)
            heavier, heavier_ratio = "fp32", 1.0
            for precision in _offered(profile, kind):
                plan = Plan(layers={layer.name: LayerPlan(quantize=Quantize(precision)) for layer in table.layers})
                fact = _fact(shop, plan, precision, (kind, width, rows * batch), (heavier, heavier_ratio))
                say(fact)
                yield fact
                if fact.kept and fact.ratio is not None:
                    heavier, heavier_ratio = precision, fact.ratio


def _offered(profile: HardwareProfile, kind: Kind) -> Iterator[Precision]:
    for precision in PRECISIONS:
        if precision in profile.precisions.get(kind, ()) and precision != "fp32" and precision not in STORED:
            yield precision


def _fact(
    shop: Workshop, plan: Plan, precision: Precision, where: tuple[Kind, int, int], heavier: tuple[str, float]
) -> KernelFact:
    kind, width, rows = where
    profile = shop.profile
    source: Source = profile.source
    try:
        path = shop.root / build_into(shop.root / precision, plan, shop, keep_weights=False).artifact.path
        latency = shop.bench.measure(path)
        computed = _computed_in(path, shop) if source == "measured" else {}
    except AutocompressError as fault:
        return KernelFact(
            kind, width, rows, precision, None, None, None, source, {}, False, f"does not run here: {fault}"
        )
    kept = latency.ratio_low <= heavier[1]
    why = "" if kept else f"slower than {heavier[0]} ({latency.ratio:.2f} against {heavier[1]:.2f})"
    low, high = latency.ratio_low, latency.ratio_high
    return KernelFact(kind, width, rows, precision, latency.ratio, low, high, source, computed, kept, why)


def _computed_in(path: Path, shop: Workshop) -> dict[str, int]:
    """Formats of the products that ran, as the runtime tells."""
    profile = shop.profile
    ran = kernels(path, profile.runtime, profile.threads, read_queries(shop.bench.inputs)[0], profile.device)
    return dict(Counter(kernel.precision for kernel in ran if kernel.precision is not None))
