"""The settings records of the techniques. Each constructor refuses what is illegal by itself, all at once.

A default never changes its meaning: plans are written without the values that are default.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from autocompress.errors import PlanError

Precision = Literal["fp32", "fp16", "fp8", "int8-dynamic", "int8", "int8-weights", "int4-weights"]

#: From heavy to light in weight bytes and arithmetic; the order of the levels in every space.
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "fp8", "int8-dynamic", "int8", "int8-weights", "int4-weights")

#: Neighbouring weights that share one scale in the 4-bit format.
INT4_GROUP = 32

STRUCTURE_SCORES = ("obs", "magnitude", "wanda", "fisher", "random", "given")
WEIGHT_SCORES = ("magnitude", "random", "wanda", "fisher", "obs", "given")


def is_count(value: object, least: int) -> bool:
    """Whether a value is an integer (no bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a value is a finite number (no bool) in [low, high]."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return low <= value <= high and abs(value) <= sys.float_info.max


def refuse(kind: str, faults: list[str]) -> None:
    """Raise `PlanError` with all faults of one record, if there are any."""
    if faults:
        raise PlanError(f"{kind}: " + "; ".join(faults))


def one_of(record: Any, **legal: tuple[Any, ...]) -> Iterator[str]:
    """Faults of fields that must be one of a few values."""
    for name, values in legal.items():
        value = getattr(record, name)
        flag = isinstance(values[0], bool)
        if not isinstance(value, type(values[0])) or isinstance(value, bool) != flag or value not in values:
            words = "true or false" if flag else "one of " + ", ".join(map(repr, values))
            yield f"{name} must be {words}, but got {value!r}"


def within(record: Any, words: str, low: float, high: float, *names: str) -> Iterator[str]:
    """Faults of numbers that must lie in [low, high]; whole numbers and -0.0 become floats as JSON has them."""
    for name in names:
        value = getattr(record, name)
        if not is_number(value, low, high):
            yield f"{name} must be {words}, but got {value!r}"
        else:
            object.__setattr__(record, name, float(value) + 0.0)


def records(record: Any, **legal: tuple[type, ...]) -> Iterator[str]:
    """Faults of fields that hold a record of one of a few kinds, or None."""
    for name, kinds in legal.items():
        value = getattr(record, name)
        if value is not None and not isinstance(value, kinds):
            yield f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}, but got {value!r}"


TINY = 5e-324  # the least positive float: "above 0" as a closed interval
BELOW_ONE = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class Prune:
    """Keep `keep` structures of a group (0 only for what is kept or removed as a whole: removed).

    `score` chooses them: "obs" (optimal brain surgeon on the consumers, Hassibi & Stork 1993), "magnitude" (L2 norm
    of the consumers' columns), "wanda" (norm times the input's norm, Sun et al. 2023), "fisher" (squared gradient of a
    mask, Kwon et al. 2022), "random", or "given": those that `Plan.init` holds. `repair` re-solves the consumers'
    surviving columns by least squares; for a removed attention or feed-forward part it keeps its mean output.
    """

    keep: int
    score: Literal["obs", "magnitude", "wanda", "fisher", "random", "given"] = "obs"
    repair: bool = True

    def __post_init__(self) -> None:
        """Refuse a negative count or an unknown score."""
        faults = [] if is_count(self.keep, 0) else [f"keep must be an integer of 0 or more, but got {self.keep!r}"]
        refuse("Prune", [*faults, *one_of(self, score=STRUCTURE_SCORES, repair=(True, False))])


@dataclass(frozen=True)
class Mask:
    """Zeros in the weights of one layer, which keeps its shape. What runtimes make of zeros is measured, not claimed.

    Attributes:
        sparsity: share of the weights (or rows, or columns) that become zero, in [0, 1); None where `threshold`
            or an N:M pattern says it.
        pattern: "unstructured"; "rows" or "columns" (output or input channels of a convolution) as a whole; or
            "N:M", such as "2:4": of every M neighbouring inputs, N stay.
        score: which go: least "magnitude", "random", "wanda" (|w| times the input's norm, within each row),
            "fisher" (squared gradient times squared weight), "obs" (with closed-form repair of the rest), or "given":
            the zeros that `Plan.init` holds.
        threshold: zero every weight whose size is under it, instead of a share.
        norm: order n of the Lₙ norm of rows and columns, 1 or 2.
    """

    sparsity: float | None = None
    pattern: str = "unstructured"
    score: Literal["magnitude", "random", "wanda", "fisher", "obs", "given"] = "magnitude"
    threshold: float | None = None
    norm: int = 2

    def __post_init__(self) -> None:
        """Refuse values outside their ranges and combinations that mean nothing."""
        faults = [*one_of(self, score=WEIGHT_SCORES, norm=(1, 2))]
        if self.sparsity is not None:
            faults += within(self, "in [0, 1)", 0.0, BELOW_ONE, "sparsity")
        if self.threshold is not None:
            faults += within(self, "above 0", TINY, math.inf, "threshold")
        given = (self.sparsity is not None) + (self.threshold is not None) + (self.n_m is not None)
        if self.pattern not in ("unstructured", "rows", "columns") and self.n_m is None:
            faults.append(f"pattern must be 'unstructured', 'rows', 'columns' or N:M with N < M, got {self.pattern!r}")
        elif given != 1 and self.score != "given":
            faults.append("give exactly one of sparsity, threshold and an N:M pattern")
        if self.threshold is not None and (self.pattern, self.score) != ("unstructured", "magnitude"):
            faults.append("a threshold needs pattern 'unstructured' and score 'magnitude'")
        if self.pattern in ("rows", "columns") and self.score not in ("magnitude", "random", "given"):
            faults.append(f"pattern {self.pattern!r} needs score 'magnitude' or 'random', but got {self.score!r}")
        if not faults and self.norm != 2 and (self.pattern not in ("rows", "columns") or self.score != "magnitude"):
            faults.append("norm is for rows or columns by magnitude only")
        refuse("Mask", faults)

    @property
    def n_m(self) -> tuple[int, int] | None:
        """N and M of an N:M pattern."""
        written = r"([1-9][0-9]*):([1-9][0-9]*)"  # one way only to write a pattern, so that equal is equal
        match = re.fullmatch(written, self.pattern) if isinstance(self.pattern, str) else None
        if match is None or int(match[1]) >= int(match[2]):
            return None
        return int(match[1]), int(match[2])


@dataclass(frozen=True)
class GlobalMask:
    """Zeros spread over all layers together: the least weights of the whole model go, wherever they are.

    Attributes:
        sparsity: share of all weights of linears and convolutions, in [0, 1).
        score: "magnitude", "fisher" or "random".
    """

    sparsity: float
    score: Literal["magnitude", "fisher", "random"] = "magnitude"

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        legal = ("magnitude", "fisher", "random")
        refuse("GlobalMask", [*one_of(self, score=legal), *within(self, "in [0, 1)", 0.0, BELOW_ONE, "sparsity")])


@dataclass(frozen=True)
class Factorize:
    """Replace a weight by two of rank `rank`.

    A linear ``(out, in)`` becomes ``(out, rank) @ (rank, in)``, an embedding ``(rows, rank) @ (rank, features)``.

    Attributes:
        rank: of the factors, 1 or more.
        method: "activation-aware" (least change of the layer's output on calibration inputs) or "plain" (least change
            of the weight: truncated SVD).
        split: of a convolution: "channel" (k×k to `rank` channels, then 1×1) or "spatial" (k×1, then 1×k).
    """

    rank: int
    method: Literal["activation-aware", "plain"] = "activation-aware"
    split: Literal["channel", "spatial"] = "channel"

    def __post_init__(self) -> None:
        """Refuse a rank below 1."""
        faults = [] if is_count(self.rank, 1) else [f"rank must be an integer of 1 or more, but got {self.rank!r}"]
        faults += one_of(self, method=("activation-aware", "plain"), split=("channel", "spatial"))
        refuse("Factorize", faults)


@dataclass(frozen=True)
class Quantize:
    """Fewer bits for one layer.

    Attributes:
        precision: one of `PRECISIONS` other than "fp32": what the exported file holds and which kernel runs.
        weight_bits: 2 to 8 for 8-bit kernels, 2 to 4 for 4-bit ones; fewer bits use fewer of the integers that the
            file's type has. None: all of them.
        activation_bits: 8, or 4 (simulated in 8-bit integers); of static "int8".
        granularity: one weight scale per output "channel" or per "tensor"; "int4-weights" has one per `INT4_GROUP`.
        symmetric: weights without zero point.
        calibrator: how static "int8" finds the range of its inputs: "percentile", "min-max" or "mse".
        rounding: of the weights: "nearest", or "gptq" (Frantar et al. 2022: each column's error is made good by the
            columns after it).
        smooth: α of SmoothQuant (Xiao et al. 2022) in [0, 1]: how much of the inputs' outliers moves into the weights.
        bias_correction: the mean error of the layer's output on calibration inputs goes into its bias.
    """

    precision: Precision
    weight_bits: int | None = None
    activation_bits: int = 8
    granularity: Literal["channel", "tensor"] = "channel"
    symmetric: bool = True
    calibrator: Literal["percentile", "min-max", "mse"] = "percentile"
    rounding: Literal["nearest", "gptq"] = "nearest"
    smooth: float | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown precision (fp32 is said by leaving Quantize out) and settings without effect."""
        faults = [
            *one_of(
                self,
                precision=PRECISIONS[1:],
                activation_bits=(8, 4),
                granularity=("channel", "tensor"),
                symmetric=(True, False),
                calibrator=("percentile", "min-max", "mse"),
                rounding=("nearest", "gptq"),
                bias_correction=(True, False),
            )
        ]
        most = 4 if self.precision == "int4-weights" else 8
        if self.weight_bits is not None and not (is_count(self.weight_bits, 2) and self.weight_bits <= most):
            faults.append(f"weight_bits must be 2 to {most} for {self.precision}, but got {self.weight_bits!r}")
        if self.smooth is not None:
            faults += within(self, "in [0, 1]", 0.0, 1.0, "smooth")
        if not faults:
            faults += self._without_effect()
        refuse("Quantize", faults)
        if self.weight_bits == most:
            object.__setattr__(self, "weight_bits", None)

    def _without_effect(self) -> Iterator[str]:
        if self.precision != "int8":
            for name, default in (("activation_bits", 8), ("calibrator", "percentile")):
                if getattr(self, name) != default:
                    yield f"{name} is for static int8 only, but precision is {self.precision!r}"
        if self.smooth is not None and self.precision not in ("int8", "int8-dynamic"):
            yield f"smooth is for int8 and int8-dynamic, whose inputs are rounded, but precision is {self.precision!r}"
        if self.granularity == "tensor" and self.precision == "int4-weights":
            yield f"granularity is fixed for int4-weights: one scale per {INT4_GROUP} inputs"
        changed = [f.name for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        if self.precision in ("fp16", "fp8") and changed:
            yield f"{self.precision} takes no other setting, but got {', '.join(changed)}"

    @property
    def stored_bits(self) -> int:
        """Bits that a weight takes in a file: fewer within a precision use fewer of the same integers."""
        return {"fp16": 16, "int4-weights": 4}.get(self.precision, 8)

    @property
    def bits(self) -> int:
        """Bits that one weight takes, scales not counted."""
        return self.weight_bits or self.stored_bits


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer; the order is fixed: structure, rank or zeros, bits."""

    factorize: Factorize | None = None
    quantize: Quantize | None = None
    mask: Mask | None = None

    def __post_init__(self) -> None:
        """Refuse zeros in a weight that is replaced by factors."""
        faults = [*records(self, factorize=(Factorize,), quantize=(Quantize,), mask=(Mask,))]
        if self.mask and self.factorize:
            faults.append("mask and factorize: a layer takes zeros or a rank, not both")
        refuse("LayerPlan", faults)

    @property
    def precision(self) -> Precision:
        """The layer's precision, "fp32" when it is not quantized."""
        return self.quantize.precision if self.quantize else "fp32"


@dataclass(frozen=True)
class Terms:
    """Weights β of further distillation terms, each the mean over the student's blocks; 0 leaves a term out.

    Attributes:
        hidden: mean squared error of hidden states, through a learned linear map that starts as the identity.
        hidden_map: which teacher block a student block learns from: "static" (its own, by depth) or "dynamic" (the
            nearest by error, order preserved; CoFi, Xia et al. 2022).
        cosine: 1 - cos of the last hidden states (DistilBERT, Sanh et al. 2019).
        relations: KL of attention and value relations of the last block (MiniLM, Wang et al. 2020).
        normalised: MSE(student, teacher) / MSE(teacher, 0) of hidden states per token (ZipLM, Kurtic et al. 2023).
    """

    hidden: float = 0.0
    hidden_map: Literal["static", "dynamic"] = "static"
    cosine: float = 0.0
    relations: float = 0.0
    normalised: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative weights, and terms that say nothing."""
        names = ("hidden", "cosine", "relations", "normalised")
        faults = [*one_of(self, hidden_map=("static", "dynamic")), *within(self, "0 or more", 0.0, math.inf, *names)]
        if not faults and not any(getattr(self, name) for name in names):
            faults.append(f"one of {', '.join(names)} must be above 0 (leave terms out otherwise)")
        refuse("Terms", faults)


@dataclass(frozen=True)
class Lora:
    """Train low-rank additions to the linears instead of all weights; merged before the integers are made.

    Attributes:
        rank, alpha: of the additions ``alpha / rank · B·A`` (Hu et al. 2021).
        base: of the frozen weights: "fp32", or "int4" (QLoRA, Dettmers et al. 2023): rounded to 4 bits in groups of
            `INT4_GROUP` while training, so that the additions learn to make up for it.
    """

    rank: int = 8
    alpha: float = 16.0
    base: Literal["fp32", "int4"] = "fp32"

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        faults = [] if is_count(self.rank, 1) else [f"rank must be an integer of 1 or more, but got {self.rank!r}"]
        faults += [*within(self, "above 0", TINY, math.inf, "alpha"), *one_of(self, base=("fp32", "int4"))]
        refuse("Lora", faults)


@dataclass(frozen=True)
class Distill:
    """Recovery by distillation: ``(1-λ)·L_hard + λ·T²·KL(teacher_T ‖ student_T) + Σ β·term`` (Hinton et al. 2015).

    Attributes:
        soft_weight: λ in [0, 1].
        temperature: T, above 0.
        learning_rate: peak of AdamW's linear decay, above 0.
        steps: optimizer steps, 1 or more.
        divergence: "kl", or "jsd" (generalised Jensen-Shannon, Agarwal et al. 2023).
        beta: of "jsd" in [0, 1]: 0 is KL(teacher ‖ student), 1 the reverse.
        on_policy: share of the steps on which a language model learns from its own continuations.
        terms: further terms on hidden states.
        normalise: divide each term by its value at the first step.
        peers: students that teach each other (Zhang et al. 2018); the first is kept. 1: none.
        lora: train additions only.
        fake_quantize: quantization-aware: layers that will be quantized compute with rounded weights and inputs.
    """

    soft_weight: float = 0.5
    temperature: float = 2.0
    learning_rate: float = 3e-4
    steps: int = 100
    divergence: Literal["kl", "jsd"] = "kl"
    beta: float = 0.5
    on_policy: float = 0.0
    terms: Terms | None = None
    normalise: bool = False
    peers: int = 1
    lora: Lora | None = None
    fake_quantize: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all at once; whole numbers become floats, so that equal is equal."""
        faults = [
            *within(self, "in [0, 1]", 0.0, 1.0, "soft_weight", "beta", "on_policy"),
            *within(self, "above 0", TINY, math.inf, "temperature", "learning_rate"),
            *one_of(self, divergence=("kl", "jsd"), normalise=(True, False), fake_quantize=(True, False)),
            *records(self, terms=(Terms,), lora=(Lora,)),
        ]
        if not is_count(self.steps, 1):
            faults.append(f"steps must be an integer of 1 or more, but got {self.steps!r}")
        if not (is_count(self.peers, 1) and self.peers <= 4):
            faults.append(f"peers must be 1 to 4, but got {self.peers!r}")
        if self.divergence == "kl" and self.beta != 0.5:
            faults.append("beta is for divergence 'jsd' only")
        if self.lora is not None and self.fake_quantize is True:
            faults.append('lora and fake_quantize cannot go together (lora with base "int4" learns on rounded weights)')
        refuse("Distill", faults)
