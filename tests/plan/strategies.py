"""Hypothesis strategies for legal plans: every record, with settings that mean something together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from autocompress.plan import (
    PRECISIONS,
    Cofi,
    Distill,
    Factorize,
    GlobalMask,
    Gradual,
    LayerPlan,
    Lora,
    LotteryTicket,
    Mask,
    Plan,
    Prune,
    Quantize,
    Terms,
)
from autocompress.plan.choices import BELOW_ONE, STRUCTURE_SCORES, WEIGHT_SCORES

names = st.text("abc.01/é*[", min_size=1, max_size=8)
unit = st.floats(0, 1)
share = st.floats(0, BELOW_ONE)
inner = st.floats(1e-9, BELOW_ONE)
above = st.floats(1e-9, 1e9)
weight = st.just(0.0) | above
steps = st.integers(1, 10**6)

prunes = st.builds(Prune, st.integers(0, 64), st.sampled_from(STRUCTURE_SCORES), st.booleans())

masks = st.one_of(
    st.builds(Mask, share, score=st.sampled_from(WEIGHT_SCORES)),
    st.builds(Mask, share, st.sampled_from(["rows", "columns"]), norm=st.sampled_from([1, 2])),
    st.builds(Mask, share, st.sampled_from(["rows", "columns"]), st.sampled_from(["random", "given"])),
    st.builds(Mask, threshold=above),
    st.builds(Mask, pattern=st.sampled_from(["2:4", "1:2", "4:8", "1:16"]), score=st.sampled_from(WEIGHT_SCORES)),
)

factorizes = st.builds(
    Factorize,
    st.integers(1, 512),
    st.sampled_from(["activation-aware", "plain"]),
    st.sampled_from(["channel", "spatial"]),
)


@st.composite
def quantizes(draw: st.DrawFn) -> Quantize:
    """Any precision with the settings that it knows."""
    precision = draw(st.sampled_from(PRECISIONS[1:]))
    if precision in ("fp16", "fp8"):
        return Quantize(precision)
    four = precision == "int4-weights"
    options: dict[str, Any] = {
        "weight_bits": draw(st.none() | st.integers(2, 4 if four else 8)),
        "granularity": "channel" if four else draw(st.sampled_from(["channel", "tensor"])),
        "symmetric": draw(st.booleans()),
        "rounding": draw(st.sampled_from(["nearest", "gptq"])),
        "bias_correction": draw(st.booleans()),
    }
    if precision == "int8":
        options["activation_bits"] = draw(st.sampled_from([4, 8]))
        options["calibrator"] = draw(st.sampled_from(["percentile", "min-max", "mse"]))
    if precision in ("int8", "int8-dynamic"):
        options["smooth"] = draw(st.none() | unit)
    return Quantize(precision, **options)


layer_plans = st.one_of(
    st.builds(LayerPlan, st.none() | factorizes, st.none() | quantizes()),
    st.builds(LayerPlan, quantize=st.none() | quantizes(), mask=masks),
)

terms = st.builds(Terms, above, st.sampled_from(["static", "dynamic"]), weight, weight, weight)
loras = st.builds(Lora, st.integers(1, 256), above, st.sampled_from(["fp32", "int4"]))


@st.composite
def distills(draw: st.DrawFn, fake_quantize: bool = False) -> Distill:
    """Any recovery; β with the divergence that knows it, no additions where rounding is learned."""
    jsd, fake = draw(st.booleans()), fake_quantize and draw(st.booleans())
    return Distill(
        draw(unit),
        draw(above),
        draw(above),
        draw(steps),
        divergence="jsd" if jsd else "kl",
        beta=draw(unit) if jsd else 0.5,
        on_policy=draw(unit),
        terms=draw(st.none() | terms),
        normalise=draw(st.booleans()),
        peers=draw(st.integers(1, 4)),
        lora=None if fake else draw(st.none() | loras),
        fake_quantize=fake,
    )


@st.composite
def cofis(draw: st.DrawFn) -> Cofi:
    """A target of either kind."""
    target = draw(st.sampled_from(["sparsity", "latency_ratio"]))
    return Cofi(**{target: draw(inner)}, steps=draw(steps), hidden=draw(st.booleans()), hidden_weight=draw(weight))


@st.composite
def tickets(draw: st.DrawFn) -> LotteryTicket:
    """Rewinds to before the end."""
    total = draw(steps)
    rewind = draw(st.integers(0, total - 1))
    return LotteryTicket(draw(inner), draw(st.integers(1, 9)), total, rewind, draw(above), draw(st.booleans()))


recipes = st.one_of(st.builds(Gradual, share, steps, st.integers(1, 99), above, unit, above), tickets(), cofis())
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
few = {"max_size": 3}


def _score(score: str, init: str | None) -> str:
    """With init everything is given, without it nothing is."""
    return "given" if init else "magnitude" if score == "given" else score


def _given(mask: Mask, init: str | None) -> Mask:
    """The same for zeros."""
    if init:
        return Mask(0.5, score="given")
    return replace(mask, score=_score(mask.score, init), sparsity=mask.sparsity)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan that does not contradict itself: learned, with zeros over all layers, or with each layer's own."""
    kind = draw(st.sampled_from(["learned", "global", "own"]))
    layers = st.builds(LayerPlan, quantize=st.none() | quantizes()) if kind != "own" else layer_plans
    chosen = draw(st.dictionaries(names, layers, **few))
    groups = {} if kind == "learned" else draw(st.dictionaries(names, prunes, **few))
    init = draw(hashes) if kind == "own" and draw(st.booleans()) else None
    groups = {name: replace(prune, score=_score(prune.score, init)) for name, prune in groups.items()}
    chosen = {name: replace(lp, mask=_given(lp.mask, init)) if lp.mask else lp for name, lp in chosen.items()}
    rounded = [lp.quantize for lp in chosen.values() if lp.quantize]
    plainly = bool(rounded) and not any(q.rounding == "gptq" or q.bias_correction for q in rounded)
    distill = draw(st.none() | distills(plainly))
    if kind == "global" and distill and distill.lora:
        distill = replace(distill, lora=None)
    return Plan(
        groups,
        chosen,
        distill,
        draw(st.integers(0, 2**31)),
        GlobalMask(draw(share), draw(st.sampled_from(["magnitude", "fisher", "random"]))) if kind == "global" else None,
        draw(st.sampled_from(["dense", "sequential"])) if not init and kind != "learned" else "dense",
        draw(recipes) if kind == "learned" else None,
        init,
    )
