"""A file's steps on a chip: operations, bytes, seconds and joules of every kernel, from the chip's published figures.

A kernel takes ``max(operations / (peak · efficiency), bytes / bandwidth) + overhead`` (Williams, Waterman and Patterson
2009, *Roofline*). Not modelled: caches, the occupancy of small products, and what runs at the same time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autocompress.errors import MeasureError, near
from autocompress.hardware import Arithmetic, Chip
from autocompress.measure.steps import Kind, Step, Work
from autocompress.plan import INT4_GROUP, Precision

#: What products of a precision are computed in, unless the chip says otherwise or lacks it: then it is fp32.
ARITHMETIC: Mapping[Precision, Arithmetic] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "fp8": "fp8",
    "int8": "int8",
    "int8-dynamic": "int8",
    "int8-weights": "fp32",
    "int4-weights": "int8",
}

#: Bits of each weight that gets a precision, scales of groups included.
WEIGHT_BITS: Mapping[Precision, float] = {
    "fp32": 32.0,
    "fp16": 16.0,
    "fp8": 8.0,
    "int8": 8.0,
    "int8-dynamic": 8.0,
    "int8-weights": 8.0,
    "int4-weights": 4.0 + 32.0 / INT4_GROUP,
}

#: Bits of weight and input by which a bit-serial chip multiplies; None stands for its `float_bits`.
SERIAL_BITS: Mapping[Precision, tuple[int | None, int | None]] = {
    "fp32": (None, None),
    "fp16": (None, None),
    "fp8": (None, None),
    "int8": (8, 8),
    "int8-dynamic": (8, 8),
    "int8-weights": (8, None),
    "int4-weights": (4, 8),
}


@dataclass(frozen=True)
class Kernel:
    """One step on one chip.

    Attributes:
        layer: whose weight it reads, or "".
        operator: of its first node.
        precision, arithmetic: of its product.
        operations: a multiply-add is 2; on a bit-serial chip, times the bits of weight and input.
        moved_bytes: to and from memory.
        compute_s, memory_s: what each would take alone; the longer one counts.
        overhead_s: on top.
    """

    layer: str
    operator: str
    precision: Precision
    arithmetic: Arithmetic
    operations: float
    moved_bytes: float
    compute_s: float
    memory_s: float
    overhead_s: float

    @property
    def busy_s(self) -> float:
        """Seconds that the chip computes or moves data."""
        return max(self.compute_s, self.memory_s)

    @property
    def seconds(self) -> float:
        """Seconds, overhead included."""
        return self.busy_s + self.overhead_s


def kernels(work: Work, chip: Chip, precisions: Mapping[str, Precision] | None = None) -> list[Kernel]:
    """Every step of a file on a chip, and the roundings that are kernels of their own.

    A product reads its inputs in 8 bits where its precision rounds them, and in 16 where it computes in halves; the
    step that wrote them writes that form too. A kernel of its own makes it of a file's input, of looked-up rows, and,
    where the range must be found first (int8-dynamic), of what another product wrote.

    Args:
        work: from `steps.read_work`.
        chip: of an analytic profile.
        precisions: of layers that get another one than the file's fp32.

    Raises:
        MeasureError: a layer is not in the file, or is no fp32 there.
    """
    chosen = _chosen(work, precisions or {})
    return list(_Charge(work, chip, chosen).kernels())


def _chosen(work: Work, precisions: Mapping[str, Precision]) -> list[Precision]:
    layers = {step.layer: step.precision for step in work.steps if step.layer}
    for name in precisions:
        if name not in layers:
            raise MeasureError(f"the file has no layer {name!r}{near(name, layers)}")
        if layers[name] != "fp32":
            raise MeasureError(f"layer {name!r} is {layers[name]} in the file: give precisions for the dense one")
    return [precisions.get(step.layer, step.precision) if step.layer else step.precision for step in work.steps]


class _Charge:
    """Steps with their precisions on a chip, and in which forms every tensor is read.

    Attributes:
        makers: tensor to the kind of the step that writes it.
        plain: tensors that are read as they are.
        joined: tensor to the bits of further forms that its step writes.
        apart: forms (tensor, bits, whether their range must be found first) that kernels of their own write.
    """

    def __init__(self, work: Work, chip: Chip, chosen: Sequence[Precision]) -> None:
        self.work, self.chip, self.chosen = work, chip, chosen
        self.makers: dict[str, Kind] = {name: step.kind for step in work.steps for name in step.writes}
        self.plain = set(work.results)
        self.joined: dict[str, set[float]] = defaultdict(set)
        self.apart: dict[tuple[str, float, bool], None] = {}
        for step, precision in zip(work.steps, chosen, strict=True):
            self.plain.update(step.reads)
            for name in step.factors:
                self._read_factor(precision, name)

    def _read_factor(self, precision: Precision, name: str) -> None:
        bits, dynamic = self._factor_bits(precision, name), precision == "int8-dynamic"
        if bits == self._bits(self.work.tensors[name].bits):
            self.plain.add(name)
        elif self.makers.get(name) == "pass" or (self.makers.get(name) == "product" and not dynamic):
            self.joined[name].add(bits)
        else:
            self.plain.add(name)
            self.apart[name, bits, dynamic] = None

    def _bits(self, stored: float) -> float:
        """Bits in memory: a bit-serial chip keeps fixed point for floats."""
        return min(stored, self.chip.float_bits) if self.chip.bit_serial and stored > 8 else stored

    def _factor_bits(self, precision: Precision, name: str) -> float:
        stored = self._bits(self.work.tensors[name].bits)
        if precision in ("int8", "int8-dynamic"):
            return min(stored, 8.0)
        return min(stored, 16.0) if arithmetic_of(precision, self.chip) in ("fp16", "bf16") else stored

    def _plain_bytes(self, name: str) -> float:
        tensor = self.work.tensors[name]
        return tensor.elements * self._bits(tensor.bits) / 8

    def kernels(self) -> Iterator[Kernel]:
        for name, bits, _dynamic in self.apart:
            moved = self._plain_bytes(name) + self.work.tensors[name].elements * bits / 8
            yield self._kernel(Step("pass", name, "QuantizeLinear"), "fp32", moved)
        for step, precision in zip(self.work.steps, self.chosen, strict=True):
            yield self._kernel(step, precision, self._moved(step, precision))

    def _moved(self, step: Step, precision: Precision) -> float:
        tensors = self.work.tensors
        weight_bits = step.weight_bits if precision == step.precision else WEIGHT_BITS[precision]
        moved = step.weights * self._bits(weight_bits) / 8 + step.constant_bytes
        moved += sum(tensors[name].elements * self._factor_bits(precision, name) / 8 for name in step.factors)
        moved += sum(self._plain_bytes(name) for name in step.reads)
        for name in step.writes:
            moved += self._plain_bytes(name) if name in self.plain else 0.0
            moved += sum(tensors[name].elements * bits / 8 for bits in self.joined.get(name, ()))
        return moved

    def _kernel(self, step: Step, precision: Precision, moved: float) -> Kernel:
        chip, arithmetic = self.chip, arithmetic_of(precision, self.chip)
        operations = 2.0 * step.macs
        if chip.bit_serial:
            weight, other = (bits or chip.float_bits for bits in SERIAL_BITS[precision])
            operations *= weight * other
        return Kernel(
            step.layer,
            step.operator,
            precision,
            arithmetic,
            operations,
            moved,
            operations / (chip.peaks[arithmetic] * chip.efficiency.get(arithmetic, 1.0)),
            moved / (chip.bandwidth * chip.bandwidth_efficiency),
            chip.kernel_overhead_s,
        )


def arithmetic_of(precision: Precision, chip: Chip) -> Arithmetic:
    """What a chip computes products of a precision in."""
    if chip.bit_serial:
        return "int1"
    wanted = chip.arithmetic.get(precision, ARITHMETIC[precision])
    return wanted if wanted in chip.peaks else "fp32"


def energy(done: Sequence[Kernel], overhead_s: float, chip: Chip) -> float | None:
    """Joules of a query: idle power all along, and what the kernels draw on top; None without power figures."""
    power = chip.power
    if power is None:
        return None
    idle = power.idle_w * (sum(kernel.seconds for kernel in done) + overhead_s)
    if power.busy_w is not None:
        return idle + (power.busy_w - power.idle_w) * sum(kernel.busy_s for kernel in done)
    assert power.byte_j is not None
    drawn = (power.op_j.get(k.arithmetic, 0.0) * k.operations + power.byte_j * k.moved_bytes for k in done)
    return idle + sum(drawn)
