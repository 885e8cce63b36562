"""The record of one technique: what it is called, where its settings stand in a plan, and an example that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any

from autocompress.plan import (
    Cofi,
    Distill,
    Factorize,
    GlobalMask,
    Gradual,
    Lora,
    LotteryTicket,
    Mask,
    Prune,
    Quantize,
    Terms,
)

#: Where a settings record stands in a plan.
_PLACES: dict[type, str] = {
    Prune: "groups.*",
    Mask: "layers.*.mask",
    GlobalMask: "mask",
    Factorize: "layers.*.factorize",
    Quantize: "layers.*.quantize",
    Gradual: "learn",
    LotteryTicket: "learn",
    Cofi: "learn",
    Distill: "distill",
    Terms: "distill.terms",
    Lora: "distill.lora",
}


@dataclass(frozen=True)
class Technique:
    """One way to compress or to recover.

    Attributes:
        id: its name, such as "prune-heads".
        group: "pruning", "low rank", "quantization" or "distillation".
        summary: what it does, in one sentence.
        records: the settings records that say it.
        paper: where it comes from.
        example_plan: a whole plan for the digits demo model.
    """

    id: str
    group: str
    summary: str
    records: tuple[type, ...]
    paper: str
    example_plan: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Places in a plan to their defaults; "required" where there is none."""
        found = {}
        for record in self.records:
            for item in fields(record):
                value = "required" if item.default is MISSING else item.default
                found[f"{_PLACES[record]}.{item.name}"] = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
        return found

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return {
            "id": self.id,
            "group": self.group,
            "summary": self.summary,
            "settings": self.settings,
            "paper": self.paper,
            "example_plan": dict(self.example_plan),
        }
