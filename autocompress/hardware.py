"""Hardware profiles: the device, its runtime and workload, and how it is timed. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from autocompress.errors import ProfileError
from autocompress.layers import LayerTable
from autocompress.plan import PRECISIONS, Plan, Precision
from autocompress.settings import find_yaml, read_yaml, validate

FOLDER = "hardware_profiles"

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Workload(_Strict):
    """One query as the device gets it."""

    batch: Count = 1
    sequence_length: Count | None = Field(None, description="tokens, padded; None for tasks without a sequence")


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
    report_queries: Count = 256

    @model_validator(mode="after")
    def _check(self) -> Timing:
        if self.max_blocks < self.min_blocks:
            raise ValueError(f"max_blocks must be at least min_blocks, {self.min_blocks}")
        return self


class HardwareProfile(_Strict):
    """A device as a search sees it.

    Attributes:
        name: what reports call it.
        device: where the model runs; "cpu" today.
        runtime: which runtime loads the artefact.
        threads: worker threads, always resolved to a number.
        workload: batch and sequence length of one query.
        precisions: layer kind to the precisions that have a kernel in this runtime.
        rounding: multiples for widths and ranks.
        timing: the measuring protocol.
        latencies: where latencies come from; "measured" means here and now.
    """

    name: str
    description: str = ""
    device: Literal["cpu"] = "cpu"
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: Count
    workload: Workload = Workload()
    precisions: Mapping[Literal["linear", "conv", "embedding"], tuple[Precision, ...]]
    rounding: Rounding = Rounding()
    timing: Timing = Timing()
    latencies: Literal["measured"] = "measured"

    @field_validator("precisions")
    @classmethod
    def _ordered(cls, value: Mapping[str, tuple[Precision, ...]]) -> dict[str, tuple[Precision, ...]]:
        return {
            kind: tuple(p for p in PRECISIONS if p in levels or p == "fp32") for kind, levels in sorted(value.items())
        }


def cores() -> int:
    """Physical cores that this process may use."""
    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else physical
    return max(1, min(physical, allowed))


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """A shipped profile by name, or one's own by path.

    ``threads: auto`` becomes the number of physical cores. Raises `ProfileError` with all mistakes at once.
    """
    path = find_yaml(name_or_path, FOLDER, ProfileError)
    data = read_yaml(path, ProfileError)
    data.setdefault("name", path.stem)
    available = cores()
    threads = data.get("threads", "auto")
    if threads == "auto":
        data["threads"] = available
    if not isinstance(threads, int) or threads <= available:
        return validate(HardwareProfile, data, str(path), ProfileError)
    fault = f"threads must be 1 to {available} on this machine, or auto, but got {threads}"
    try:
        validate(HardwareProfile, data, str(path), ProfileError)
    except ProfileError as others:
        raise ProfileError(f"{others}\n  {fault}") from None
    raise ProfileError(f"{path}: {fault}")


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
