"""Hardware profiles: the device, its runtime and workload, and where its latencies come from. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from autocompress.errors import ProfileError, near
from autocompress.layers import LayerTable
from autocompress.plan import PRECISIONS, Plan, Precision
from autocompress.processors import allowed_threads, cores
from autocompress.runtimes import RUNTIMES, Device
from autocompress.settings import find_yaml, read_yaml, validate

FOLDER = "hardware_profiles"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]

#: Number formats that a chip multiplies; "int1" is one bit by one bit.
Arithmetic = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "int1"]

#: What a recorded table was taken with: a profile that names the table cannot change it.
FIXED = ("runtime", "device", "threads", "workload")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Workload(_Strict):
    """One query as the device gets it.

    Attributes:
        batch: samples per query.
        sequence_length: tokens, padded; None for tasks without a sequence.
        lengths: "padded" times every query at `sequence_length`; "data" at lengths drawn, seeded, from the task's own.
        prompt_length, new_tokens: of a decoder that generates: a query is the prompt and so many tokens after it.
            Both or neither.
    """

    batch: Count = 1
    sequence_length: Count | None = None
    lengths: Literal["padded", "data"] = "padded"
    prompt_length: Count | None = None
    new_tokens: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Workload:
        if (self.prompt_length is None) != (self.new_tokens is None):
            raise ValueError("give prompt_length and new_tokens, or neither")
        return self


class Rounding(_Strict):
    """Multiples to which widths and ranks are rounded, at least one."""

    heads: Count = 1
    neurons: Count = 8
    channels: Count = 8
    hidden: Count = 32
    rank: Count = 8


class Timing(_Strict):
    """How a latency is measured; see `measure.timing` for what each number does."""

    warmup_seconds: Positive = 0.2
    block_seconds: Positive = 0.02
    min_blocks: Annotated[int, Field(ge=7)] = 7
    max_blocks: Count = 24
    half_width: Positive = 0.01
    drift: Positive = 0.03
    slowed: Positive = 0.05
    report_queries: Count = 256

    @model_validator(mode="after")
    def _check(self) -> Timing:
        if self.max_blocks < self.min_blocks:
            raise ValueError(f"max_blocks must be at least min_blocks, {self.min_blocks}")
        return self


class Power(_Strict):
    """What an analytic chip draws: in watts, or in joules per operation and per byte.

    Attributes:
        idle_w: drawn all the time.
        busy_w: drawn while a kernel computes or moves data.
        op_j: joules per operation (a multiply-add is 2), by number format.
        byte_j: joules per byte that crosses the memory bus.
    """

    idle_w: NotNegative = 0.0
    busy_w: Positive | None = None
    op_j: Mapping[Arithmetic, Positive] = {}
    byte_j: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Power:
        if (self.busy_w is None) != bool(self.op_j and self.byte_j):
            raise ValueError("give busy_w, or op_j together with byte_j")
        if self.busy_w is not None and self.busy_w < self.idle_w:
            raise ValueError(f"busy_w must be at least idle_w, {self.idle_w:g}")
        return self


class Chip(_Strict):
    """A chip by its published figures, for predictions; see `measure.roofline`.

    Attributes:
        name, source: which chip, and who published the figures.
        peaks: operations per second by number format, dense. One multiply-add is 2 operations, as vendors count.
        bandwidth: bytes per second to and from memory.
        kernel_overhead_s: seconds that every kernel takes on top.
        query_overhead_s: seconds that every query takes on top.
        efficiency: share of the peak that matrix products reach; 1 where left out.
        bandwidth_efficiency: share of the bandwidth that is reached.
        arithmetic: precision of a plan to the number format that its products are computed in, where it is not
            the obvious one (int8 for all integers): some kernels make halves of 4-bit weights first.
        bit_serial: whether a product takes time in proportion to weight bits times activation bits, as in HAQ
            (Wang et al. 2019, arXiv:1811.08886); `peaks` then holds "int1" alone.
        float_bits: fixed-point bits that stand for a float on a bit-serial chip.
        power: what it draws, for predicted energy.
    """

    name: str
    source: str
    peaks: Annotated[Mapping[Arithmetic, Positive], Field(min_length=1)]
    bandwidth: Positive
    kernel_overhead_s: NotNegative
    query_overhead_s: NotNegative
    bit_serial: bool = Field(False, validate_default=True)
    float_bits: Count = 16
    efficiency: Mapping[Arithmetic, Share] = {}
    bandwidth_efficiency: Share = 1.0
    arithmetic: Mapping[Precision, Arithmetic] = {}
    power: Power | None = None

    @field_validator("bit_serial")
    @classmethod
    def _base(cls, value: bool, info: ValidationInfo) -> bool:
        peaks = set(info.data.get("peaks", {}))
        if peaks and value and peaks != {"int1"}:
            raise ValueError("a bit-serial chip has one peak, int1: one bit by one bit")
        if peaks and not value and ("fp32" not in peaks or "int1" in peaks):
            raise ValueError("a chip that is not bit-serial needs a peak for fp32, and has none for int1")
        return value

    @field_validator("efficiency", "arithmetic")
    @classmethod
    def _known(cls, value: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        peaks = info.data.get("peaks", {})
        strangers = sorted(set(value if info.field_name == "efficiency" else value.values()) - set(peaks))
        if peaks and strangers:
            raise ValueError(f"{', '.join(strangers)} without a peak; there are peaks for {', '.join(peaks)}")
        return value

    @field_validator("power")
    @classmethod
    def _paid(cls, value: Power | None, info: ValidationInfo) -> Power | None:
        missing = sorted(set(info.data.get("peaks", {})) - set(value.op_j)) if value and value.op_j else []
        if missing:
            raise ValueError(f"op_j has no joules for {', '.join(missing)}")
        return value


class HardwareProfile(_Strict):
    """A device as a search sees it.

    Attributes:
        name: what reports call it.
        latencies: "measured" here and now; "recorded" from a table that was taken on the device; "analytic",
            predicted from a chip's published figures.
        runtime: which runtime loads the artefact.
        device: where the runtime runs it.
        threads: worker threads, always resolved to a number; of an analytic chip, the cores that its peaks stand for.
        workload: batch and lengths of one query.
        precisions: layer kind to the precisions that have a kernel there; what the runtime claims, unless given.
        rounding: multiples for widths and ranks.
        timing: the measuring protocol.
        table: the file that `autocompress record` wrote, of a recorded profile.
        chip: of an analytic profile.
    """

    name: str
    description: str = ""
    latencies: Literal["measured", "recorded", "analytic"] = "measured"
    runtime: str = "onnxruntime"
    device: Device = "cpu"
    threads: Count
    workload: Workload = Workload()
    precisions: Mapping[Literal["linear", "conv", "embedding"], tuple[Precision, ...]]
    rounding: Rounding = Rounding()
    timing: Timing = Timing()
    table: Path | None = Field(None, validate_default=True)
    chip: Chip | None = Field(None, validate_default=True)

    @property
    def source(self) -> Literal["measured", "recorded", "predicted"]:
        """What its latencies are, as each of them says of itself."""
        return "predicted" if self.latencies == "analytic" else self.latencies

    @model_validator(mode="before")
    @classmethod
    def _claimed(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("precisions") is None:
            made = RUNTIMES.get(str(data.get("runtime", "onnxruntime")))
            return {**data, "precisions": dict(made.kernels_on(data.get("device", "cpu"))) if made else {}}
        return data

    @field_validator("runtime")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in RUNTIMES:
            raise ValueError(f"there is no such runtime{near(value, RUNTIMES)}")
        return value

    @field_validator("device")
    @classmethod
    def _reached(cls, value: Device, info: ValidationInfo) -> Device:
        runtime = info.data.get("runtime")
        if runtime and value not in RUNTIMES[runtime].devices:
            raise ValueError(f"{runtime} runs on {', '.join(RUNTIMES[runtime].devices)}")
        return value

    @field_validator("precisions")
    @classmethod
    def _ordered(cls, value: Mapping[str, tuple[Precision, ...]]) -> dict[str, tuple[Precision, ...]]:
        return {
            kind: tuple(p for p in PRECISIONS if p in levels or p == "fp32") for kind, levels in sorted(value.items())
        }

    @field_validator("table", "chip")
    @classmethod
    def _belongs(cls, value: Any, info: ValidationInfo) -> Any:
        kind = {"table": "recorded", "chip": "analytic"}[str(info.field_name)]
        latencies = info.data.get("latencies", kind)
        if latencies == kind and value is None and "latencies" in info.data:
            raise ValueError(f"a profile with latencies: {kind} needs it")
        if latencies != kind and value is not None:
            raise ValueError(f"a profile with latencies: {latencies} has none; it is for latencies: {kind}")
        return value

    @property
    def host_threads(self) -> int:
        """Threads with which this machine runs files, to check and to grade them."""
        return self.threads if self.latencies == "measured" else cores()

    @property
    def host_device(self) -> Device:
        """Device on which this machine runs files, to check and to grade them: no other needs to be here."""
        return self.device if self.latencies == "measured" else "cpu"


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """A shipped profile by name, one's own by path, or that of a table (``.json``) which `autocompress record` wrote.

    ``threads: auto`` becomes the number of physical cores. Raises `ProfileError` with all mistakes at once.
    """
    if Path(name_or_path).suffix == ".json":
        path = Path(name_or_path)
        data: dict[str, Any] = {"latencies": "recorded", "table": path.name}
    else:
        path = find_yaml(name_or_path, FOLDER, ProfileError)
        data = read_yaml(path, ProfileError)
    data.setdefault("name", path.stem)
    faults = _settle_table(data, path) if data.get("latencies") == "recorded" else []
    faults += _settle_threads(data)
    try:
        profile = validate(HardwareProfile, data, str(path), ProfileError)
    except ProfileError as others:
        raise ProfileError("\n  ".join([str(others), *faults])) from None
    if faults:
        raise ProfileError("\n  ".join([f"{path}:", *faults]) if len(faults) > 1 else f"{path}: {faults[0]}")
    return profile


def _settle_threads(data: dict[str, Any]) -> list[str]:
    """Put a number in the place of "auto"; what is wrong with the threads."""
    latencies, threads = data.get("latencies", "measured"), data.get("threads")
    if latencies in ("recorded", "analytic"):
        data["threads"] = 1 if threads in (None, "auto") else threads
        if threads != "auto":
            return []
        return [f"threads: auto counts this machine's cores, and latencies are {latencies}: give the device's number"]
    available = cores()
    if threads in (None, "auto"):
        data["threads"] = available
    elif isinstance(threads, int) and threads > max(available, len(allowed_threads())):
        most = max(available, len(allowed_threads()))
        return [f"threads must be 1 to {most} on this machine, or auto, but got {threads}"]
    return []


def _settle_table(data: dict[str, Any], path: Path) -> list[str]:
    """Fill a recorded profile from its table; what is wrong with the two."""
    if not isinstance(data.get("table"), str):
        return []
    table = (path.parent / data["table"]).absolute()
    data["table"] = str(table)
    taken = _taken_with(table)
    if isinstance(taken, str):
        return [taken]
    faults = [
        f"{key}: the table was recorded with {taken[key]!r}, but got {data[key]!r}"
        for key in FIXED
        if key in data and not _same(key, data[key], taken.get(key))
    ]
    data.update({**{key: value for key, value in taken.items() if value is not None}, **data})
    return faults


def _taken_with(table: Path) -> dict[str, Any] | str:
    """The profile inside a table, or what is wrong with the file."""
    remedy = "autocompress record writes such files"
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"table: {table}: no such file; {remedy}"
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        return f"table: {table}: cannot be read: {fault}"
    profile = content.get("profile") if isinstance(content, dict) else None
    return profile if isinstance(profile, dict) else f"table: {table}: holds no profile; {remedy}"


def _same(key: str, given: Any, taken: Any) -> bool:
    """Whether a key of a recorded profile says what its table says."""
    if key != "workload":
        return bool(given == taken) or given == "auto"  # told of elsewhere
    try:
        return Workload.model_validate(given) == Workload.model_validate(taken or {})
    except ValidationError:
        return True  # told of elsewhere


def check_precisions(plan: Plan, table: LayerTable, profile: HardwareProfile) -> None:
    """Raise `ProfileError` naming every layer whose precision has no kernel on the profile."""
    faults = []
    for name, layer_plan in plan.layers.items():
        available = profile.precisions.get(table.layer(name).kind, ("fp32",))
        if layer_plan.precision not in available:
            kind = table.layer(name).kind
            faults.append(f"{name}: {layer_plan.precision} has no {kind} kernel there; it has {', '.join(available)}")
    if faults:
        raise ProfileError("\n  ".join([f"hardware profile {profile.name!r} cannot run the plan:", *faults]))
