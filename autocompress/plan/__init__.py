"""One candidate as frozen data: what to prune, mask, factorize and quantize, and how to recover. No torch."""

from __future__ import annotations

from autocompress.plan.check import (
    EffectiveLayer,
    check_plan,
    effective_layers,
    legal_precisions,
    removed_blocks,
    removed_groups,
)
from autocompress.plan.choices import (
    INT4_GROUP,
    PRECISIONS,
    Distill,
    Factorize,
    GlobalMask,
    LayerPlan,
    Lora,
    Mask,
    Precision,
    Prune,
    Quantize,
    Terms,
)
from autocompress.plan.describe import describe
from autocompress.plan.plan import Plan, plan_from_json
from autocompress.plan.recipes import Cofi, Gradual, LotteryTicket, Recipe

__all__ = [
    "INT4_GROUP",
    "PRECISIONS",
    "Cofi",
    "Distill",
    "EffectiveLayer",
    "Factorize",
    "GlobalMask",
    "Gradual",
    "LayerPlan",
    "Lora",
    "LotteryTicket",
    "Mask",
    "Plan",
    "Precision",
    "Prune",
    "Quantize",
    "Recipe",
    "Terms",
    "check_plan",
    "describe",
    "effective_layers",
    "legal_precisions",
    "plan_from_json",
    "removed_blocks",
    "removed_groups",
]
