"""A plan in a few words, for tables and reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from autocompress.layers import LayerTable
from autocompress.plan.check import (
    EffectiveLayer,
    effective_layers,
    lies_in,
    removed_blocks,
    removed_groups,
    removed_layers,
)
from autocompress.plan.choices import Distill, Mask, Quantize
from autocompress.plan.plan import Plan
from autocompress.plan.recipes import Cofi, LotteryTicket, Recipe


def describe(plan: Plan, table: LayerTable) -> str:
    """What was done, in a few words, such as ``heads 50 %, neurons 25 %, int8 ×24, λ 0.5, T 2``."""
    parts = [
        *([_recipe(plan.learn)] if plan.learn else []),
        *_structure(plan, table),
        *_zeros(plan),
        *_layers([e for e in effective_layers(plan, table) if not e.removed]),
        *([_recovery(plan.distill)] if plan.distill else []),
    ]
    return ", ".join(parts) or "dense fp32"


def _shares(pairs: list[tuple[int, int]]) -> str:
    kept, total = sum(p[0] for p in pairs), sum(p[1] for p in pairs)
    return f"{100 * kept / total:.0f} %"


def _structure(plan: Plan, table: LayerTable) -> Iterator[str]:
    gone = removed_layers(plan, table)
    for kind in ("heads", "neurons", "channels", "hidden"):
        live = [g for g in table.groups if g.kind == kind and not lies_in(g, gone)]
        if any(g.name in plan.groups for g in live):
            pairs = [(plan.groups[g.name].keep if g.name in plan.groups else g.size, g.size) for g in live]
            yield f"{kind} {_shares(pairs)}"
    blocks = removed_blocks(plan, table)
    if blocks:
        which = ", ".join(str(i) for i, block in enumerate(table.blocks) if block in blocks)
        yield f"{len(blocks)} of {len(table.blocks)} blocks removed ({which})"
    for kind, words in (("attention", "attention"), ("feed_forward", "feed-forward")):
        count = sum(g.kind == kind for g in table.groups if g.name in removed_groups(plan, table))
        if count:
            yield f"{count} {words} part{'s' if count > 1 else ''} removed"
    if plan.repair == "sequential":
        yield "repaired in sequence"


def _mask(mask: Mask) -> str:
    if mask.threshold is not None:
        return f"weights under {mask.threshold:g} zero"
    amount = mask.pattern if mask.n_m else f"{100 * (mask.sparsity or 0):.0f} %"
    what = "" if mask.pattern == "unstructured" or mask.n_m else f"{mask.pattern} "
    return f"{what}{amount} zero ({mask.score})"


def _zeros(plan: Plan) -> Iterator[str]:
    if plan.mask:
        yield f"{100 * plan.mask.sparsity:.0f} % zero over all layers ({plan.mask.score})"
    counts = Counter(_mask(lp.mask) for lp in plan.layers.values() if lp.mask)
    for words, count in counts.items():
        yield f"{words} ×{count}"


def _bits(quantize: Quantize) -> str:
    extras = [f"{quantize.weight_bits}-bit weights" if quantize.weight_bits else ""]
    extras += [f"{quantize.activation_bits}-bit inputs" if quantize.activation_bits != 8 else ""]
    extras += ["per tensor" if quantize.granularity == "tensor" else "", "" if quantize.symmetric else "asymmetric"]
    extras += [quantize.calibrator if quantize.calibrator != "percentile" else ""]
    extras += ["GPTQ" if quantize.rounding == "gptq" else ""]
    extras += [f"smoothed {quantize.smooth:g}" if quantize.smooth is not None else ""]
    extras += ["bias-corrected" if quantize.bias_correction else ""]
    said = ", ".join(extra for extra in extras if extra)
    return quantize.precision + (f" ({said})" if said else "")


def _layers(layers: list[EffectiveLayer]) -> Iterator[str]:
    ranks = [e.rank for e in layers if e.rank is not None]
    if ranks:
        yield f"rank {min(ranks)}–{max(ranks)} ×{len(ranks)}" if len(set(ranks)) > 1 else f"rank {ranks[0]}"
    for words, count in Counter(_bits(e.quantize) for e in layers if e.quantize).items():
        yield f"{words} ×{count}"


def _recovery(d: Distill) -> str:
    parts = [f"λ {d.soft_weight:.2f}, T {d.temperature:.1f}, {d.steps} steps"]
    if d.divergence == "jsd":
        parts.append(f"JSD β {d.beta:g}")
    if d.on_policy:
        parts.append(f"{100 * d.on_policy:.0f} % on policy")
    if d.terms:
        parts += [
            f"{name} {getattr(d.terms, name):g}"
            for name in ("hidden", "cosine", "relations", "normalised")
            if getattr(d.terms, name)
        ]
    if d.peers > 1:
        parts.append(f"{d.peers} peers")
    if d.lora:
        parts.append(f"{'QLoRA' if d.lora.base == 'int4' else 'LoRA'} rank {d.lora.rank}")
    if d.fake_quantize:
        parts.append("quantization-aware")
    return ", ".join(parts)


def _recipe(recipe: Recipe) -> str:
    if isinstance(recipe, LotteryTicket):
        return f"lottery ticket to {100 * recipe.sparsity:.0f} % zero in {recipe.rounds} rounds"
    if isinstance(recipe, Cofi):
        goal = f"{100 * recipe.sparsity:.0f} %" if recipe.sparsity else f"{recipe.latency_ratio:g} of the latency"
        return f"CoFi to {goal}"
    return f"gradually to {100 * recipe.sparsity:.0f} % zero"
