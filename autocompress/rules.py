"""The schema of a search space's YAML: what may be chosen, before any model is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from autocompress.errors import PlanError, SpaceError, near
from autocompress.layers import GroupKind, Layer
from autocompress.plan import PRECISIONS, Distill, Mask, Plan, Precision, Quantize, Recipe, plan_from_json
from autocompress.settings import find_yaml, read_yaml, validate

FOLDER = "search_spaces"

Share = Annotated[float, Field(gt=0, le=1)]

#: Settings of `plan.Quantize` that a rule may fix.
QUANTIZE_OPTIONS = (
    "activation_bits",
    "granularity",
    "symmetric",
    "calibrator",
    "rounding",
    "smooth",
    "bias_correction",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Level = TypeVar("Level", float, int, Precision)


def _some(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels, if there are any."""
    if not levels:
        raise ValueError("must hold at least one level")
    return levels


def _from_full(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Levels from all to least, each once."""
    return tuple(sorted(set(_some(levels)), reverse=True))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """A plan's refusal in the form that the schema reports."""
    try:
        yield
    except PlanError as fault:
        raise ValueError(str(fault)) from None


def _fault(precision: Precision, settings: Mapping[str, Any]) -> str:
    """Why a precision does not take some settings, or ""."""
    try:
        Quantize(precision, **settings)
    except PlanError as fault:
        return str(fault)
    return ""


class GroupRules(_Strict):
    """Shares of structures that may stay, such as ``heads: [1.0, 0.5]``; what is left out is not pruned.

    `score` and `repair` are those of `plan.Prune`; `remove_attention` and `remove_feed_forward` let whole parts go.
    """

    heads: tuple[Share, ...] = (1.0,)
    neurons: tuple[Share, ...] = (1.0,)
    channels: tuple[Share, ...] = (1.0,)
    hidden: tuple[Share, ...] = (1.0,)
    remove_attention: bool = False
    remove_feed_forward: bool = False
    score: Literal["obs", "magnitude", "wanda", "fisher", "random"] = "obs"
    repair: bool = True

    _order = field_validator("heads", "neurons", "channels", "hidden")(_from_full)

    def shares(self, kind: GroupKind) -> tuple[float, ...]:
        """Levels of a kind of group that is counted in structures."""
        found: tuple[float, ...] = getattr(self, kind)
        return found


class BlockRule(_Strict):
    """Whether whole blocks may go, and the share of them that always stays."""

    remove: bool = False
    keep_at_least: Share = 0.5


class LayerRule(_Strict):
    """Precisions, ranks and zeros of the layers whose name fits `match`; of several rules the last that fits counts.

    Attributes:
        match, kind: which layers.
        precision, rank, sparsity: levels to choose from.
        weight_bits: levels of bits within an integer precision, such as ``[8, 4, 3]``.
        pattern, mask_score: of the zeros, see `plan.Mask`; an "N:M" pattern takes sparsity levels 0 and 1 - N/M.
        method, split: of the factors, see `plan.Factorize`.
        quantize: settings of `plan.Quantize` beside precision and bits, used where the precision knows them.
        share: layers that choose together.
    """

    match: str = "*"
    kind: Literal["linear", "conv", "embedding"] | None = None
    precision: tuple[Precision, ...] = ("fp32",)
    weight_bits: tuple[Annotated[int, Field(ge=2, le=8)], ...] = (8,)
    rank: tuple[Share, ...] = (1.0,)
    sparsity: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.0,)
    pattern: str = "unstructured"
    mask_score: Literal["magnitude", "random", "wanda", "fisher", "obs"] = "magnitude"
    method: Literal["activation-aware", "plain"] = "activation-aware"
    split: Literal["channel", "spatial"] = "channel"
    quantize: Mapping[str, Any] = Field(default_factory=dict)
    share: Literal["layer", "block", "all"] = "layer"

    _order = field_validator("rank")(_from_full)

    @field_validator("precision")
    @classmethod
    def _heavy_first(cls, levels: tuple[Precision, ...]) -> tuple[Precision, ...]:
        return tuple(p for p in PRECISIONS if p in _some(levels))

    @field_validator("sparsity")
    @classmethod
    def _dense_first(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(_some(levels))))

    @field_validator("weight_bits")
    @classmethod
    def _most_first(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(_some(levels)), reverse=True))

    @model_validator(mode="after")
    def _check(self) -> LayerRule:
        with _told():
            Mask(pattern=self.pattern, score="given")
            for share in self.sparsity:
                self.mask(share)
        unknown = set(self.quantize) - set(QUANTIZE_OPTIONS)
        if unknown:
            raise ValueError(f"quantize: unknown key {sorted(unknown)[0]!r}; known: {', '.join(QUANTIZE_OPTIONS)}")
        for name, value in self.quantize.items():
            faults = [_fault(p, {name: value}) for p in self.precision if p != "fp32"]
            if all(faults):
                raise ValueError(f"quantize: {faults[0] if faults else f'{name} needs a precision beside fp32'}")
        return self

    def mask(self, sparsity: float) -> Mask | None:
        """The zeros of one level; None for none."""
        if not sparsity:
            return None
        n_m = Mask(pattern=self.pattern, score="given").n_m
        if n_m and abs(1 - n_m[0] / n_m[1] - sparsity) > 1e-9:
            raise PlanError(
                f"pattern {self.pattern} has sparsity {1 - n_m[0] / n_m[1]:g}, but the level is {sparsity:g}"
            )
        return Mask(None if n_m else sparsity, self.pattern, self.mask_score)

    def scope(self, number: int, layer: Layer) -> str:
        """What a layer chooses together with; rule `number` has scopes of its own, as a later rule takes layers out."""
        if self.share == "all":
            return f"rule {number}"
        if self.share == "block" and layer.block:
            return f"{layer.block} (rule {number})"
        return layer.name

    def quantized(self, precision: Precision, bits: int) -> Quantize | None:
        """The settings of one precision and one level of bits; what the precision does not know is left out."""
        if precision == "fp32":
            return None
        known = {name: value for name, value in self.quantize.items() if not _fault(precision, {name: value})}
        most = 4 if precision == "int4-weights" else 8
        few = bits if precision != "fp16" and bits < most else None
        return Quantize(precision, weight_bits=few, **known)


class Bounds(_Strict):
    """An interval of real values."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Bounds:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError("low must not be above high, and above 0 where log is true")
        return self


class DistillDefault(_Strict):
    """Where recoveries start; in `joint` with the learning rate that the probe tried best."""

    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4


class DistillRule(_Strict):
    """Ranges of the recovery; ``steps: [0]`` turns it off.

    `options` are further settings of `plan.Distill` that every candidate has, such as ``terms: {hidden: 1.0}``.
    """

    soft_weight: Bounds = Bounds(low=0.0, high=1.0)
    temperature: Bounds = Bounds(low=1.0, high=8.0, log=True)
    learning_rate: Bounds = Bounds(low=1e-4, high=1e-3, log=True)
    steps: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    default: DistillDefault = DistillDefault()
    options: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> DistillRule:
        if self.soft_weight.low < 0 or self.soft_weight.high > 1:
            raise ValueError("soft_weight must lie in [0, 1]")
        for name in ("temperature", "learning_rate"):
            if getattr(self, name).low <= 0:
                raise ValueError(f"{name} must be above 0")
        searched = {"soft_weight", "temperature", "learning_rate", "steps"} & set(self.options)
        if searched:
            raise ValueError(f"options: {sorted(searched)[0]} is searched, so it cannot be fixed here")
        with _told():
            self.record(Distill())
        return self

    def record(self, settings: Distill) -> Distill:
        """Searched settings with the fixed options."""
        given = {**Plan(distill=settings).to_json()["distill"], **self.options}
        aware = given.pop("fake_quantize", False)  # of a whole plan it asks for layers with quantize
        plan = plan_from_json({"distill": given}, "options")
        assert plan.distill is not None
        return replace(plan.distill, fake_quantize=aware)

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(_some(steps))))


class SolveRule(_Strict):
    """The integer program of ``strategy: solve``.

    Attributes:
        samples: training samples that errors are taken on.
        points: budgets, evenly spaced in the logarithm of what they limit.
        refine: plans that are solved anew from what was measured, beyond `points`.
        sweep: what the budgets limit: "latency", or "size" (bytes of the weights at their bits).
        max_size: bytes of the weights that any solved plan may take, as a share of the dense ones.
    """

    samples: Annotated[int, Field(ge=1)] = 256
    points: Annotated[int, Field(ge=2)] = 40
    refine: Annotated[int, Field(ge=0)] = 8
    sweep: Literal["latency", "size"] = "latency"
    max_size: Share = 1.0

    @property
    def by_size(self) -> bool:
        """Whether bytes count beside seconds, so that a precision that is slow may still be wanted."""
        return self.sweep == "size" or self.max_size < 1


Strategy = Literal["staged", "joint", "solve"]
STRATEGIES: tuple[Strategy, ...] = ("staged", "joint", "solve")


class SpaceRules(_Strict):
    """The schema of ``search_spaces/*.yaml``.

    Attributes:
        strategy: "staged" solves, refines and then recovers; "joint" searches everything at once; "solve" chooses bits
            alone, by an integer program over what each layer costs and loses, without any training.
        solve: settings of that last program.
        groups, blocks, layers, distill: what may be chosen.
        sparsity: levels of zeros spread over all layers together (`plan.GlobalMask`), with `mask_score`.
        repair: of every candidate, see `plan.Plan`.
        learn: recipes (and null for none) to choose from, as in a plan's ``learn``.
    """

    name: str
    description: str = ""
    strategy: Strategy = "staged"
    solve: SolveRule = SolveRule()
    groups: GroupRules = GroupRules()
    blocks: BlockRule = BlockRule()
    layers: tuple[LayerRule, ...] = ()
    sparsity: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.0,)
    mask_score: Literal["magnitude", "fisher", "random"] = "magnitude"
    repair: Literal["dense", "sequential"] = "dense"
    learn: tuple[Mapping[str, Any] | None, ...] = (None,)
    distill: DistillRule = DistillRule()
    _file: str = PrivateAttr("")

    @property
    def source(self) -> str:
        """Where the rules were read from, as messages name it."""
        return self._file or f"space {self.name!r}"

    @field_validator("sparsity")
    @classmethod
    def _dense_first(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(_some(levels))))

    @field_validator("learn")
    @classmethod
    def _legal(cls, levels: tuple[Mapping[str, Any] | None, ...]) -> tuple[Mapping[str, Any] | None, ...]:
        if not levels:
            raise ValueError("must hold at least one level")
        with _told():
            for level in levels:
                plan_from_json({"learn": level}, "learn")
        return tuple(sorted(levels, key=lambda level: level is not None))  # what is dense comes first

    @model_validator(mode="after")
    def _trainable(self) -> SpaceRules:
        undone = any(r.quantize.get("rounding") == "gptq" or r.quantize.get("bias_correction") for r in self.layers)
        if self.distill.options.get("fake_quantize") and undone:
            raise ValueError("distill.options.fake_quantize cannot go with gptq or bias_correction, which undo it")
        return self

    @model_validator(mode="after")
    def _solvable(self) -> SpaceRules:
        if self.strategy != "solve":
            if self.solve != SolveRule():
                raise ValueError(f"solve is for strategy 'solve', but the strategy is {self.strategy!r}")
            return self
        other = [
            name
            for name in ("groups", "blocks", "sparsity", "learn", "distill")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        for number, rule in enumerate(self.layers):
            fields = LayerRule.model_fields
            names = [name for name in ("rank", "sparsity") if getattr(rule, name) != fields[name].default]
            other += [f"layers.{number}.{name}" for name in names]
        if other:
            raise ValueError(f"strategy 'solve' chooses precision and weight_bits alone, but got {', '.join(other)}")
        return self

    @property
    def asks_beyond_recovery(self) -> bool:
        """Whether a space is about more than teaching the model as it is."""
        fields = type(self).model_fields
        asked = ("groups", "blocks", "layers", "sparsity", "learn")
        return any(getattr(self, name) != fields[name].default for name in asked)

    @property
    def recipes(self) -> tuple[Recipe | None, ...]:
        """The levels of `learn` as records."""
        return tuple(plan_from_json({"learn": level}).learn for level in self.learn)


def load_space(name_or_path: str | Path, strategy: str | None = None) -> SpaceRules:
    """A shipped space by name, or one's own by path; raises `SpaceError` with all mistakes at once.

    Args:
        name_or_path: such as "transformer" or "my.yaml".
        strategy: takes the place of the space's own.
    """
    path = find_yaml(name_or_path, FOLDER, SpaceError)
    data = read_yaml(path, SpaceError)
    data.setdefault("name", path.stem)
    if strategy is not None and strategy not in STRATEGIES:
        raise SpaceError(f"--strategy {strategy!r} is unknown{near(strategy, STRATEGIES)}")
    if strategy is not None:
        data["strategy"] = strategy
        if strategy != "solve":
            data.pop("solve", None)
    rules = validate(SpaceRules, data, str(path), SpaceError)
    rules._file = str(path)
    return rules
