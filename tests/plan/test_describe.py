"""Oracle: words written by hand for plans written by hand."""

from __future__ import annotations

import pytest

from autocompress.plan import (
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
    describe,
)


def quantized(*names: str, **settings: object) -> Plan:
    return Plan(layers={name: LayerPlan(quantize=Quantize(**settings)) for name in names})  # type: ignore[arg-type]


def masked(*names: str, **settings: object) -> Plan:
    return Plan(layers={name: LayerPlan(mask=Mask(**settings)) for name in names})  # type: ignore[arg-type]


def ranks(**layers: int) -> Plan:
    return Plan(layers={f"net.0.{name}": LayerPlan(Factorize(rank)) for name, rank in layers.items()})


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        pytest.param(Plan(), "dense fp32", id="dense"),
        pytest.param(Plan({"net.0.attention/heads": Prune(2)}), "heads 75 %", id="heads_of_all_live_groups"),  # 6 of 8
        pytest.param(Plan({"net.0.mlp/neurons": Prune(4), "net.1": Prune(0)}),
                     "neurons 25 %, 1 of 2 blocks removed (1)", id="neurons_of_the_block_that_stays"),
        pytest.param(ranks(q=2), "rank 2", id="one_rank"),
        pytest.param(ranks(q=2, k=3), "rank 2–3 ×2", id="two_ranks"),
        pytest.param(quantized("net.0.q", "net.1.q", precision="int8"), "int8 ×2", id="int8"),
        pytest.param(quantized("embed", precision="int8-weights"), "int8-weights ×1", id="int8_weights"),
        pytest.param(quantized("net.0.q", precision="fp16"), "fp16 ×1", id="fp16"),
        pytest.param(
            quantized("net.0.q", precision="int8", weight_bits=4, activation_bits=4, granularity="tensor",
            symmetric=False,
                      calibrator="mse", rounding="gptq", smooth=0.5, bias_correction=True),
            "int8 (4-bit weights, 4-bit inputs, per tensor, asymmetric, mse, GPTQ, smoothed 0.5, bias-corrected) ×1",
            id="quantize_options",
        ),
        pytest.param(masked("net.0.q", "net.0.k", sparsity=0.5), "50 % zero (magnitude) ×2", id="zeros"),
        pytest.param(masked("net.0.q", sparsity=0.25, score="obs"), "25 % zero (obs) ×1", id="zeros_by_obs"),
        pytest.param(masked("conv", sparsity=0.25, pattern="rows"), "rows 25 % zero (magnitude) ×1", id="rows"),
        pytest.param(masked("conv", sparsity=0.5, pattern="columns", score="random"), "columns 50 % zero (random) ×1",
                     id="columns"),
        pytest.param(masked("net.0.q", pattern="2:4", score="wanda"), "2:4 zero (wanda) ×1", id="n_m"),
        pytest.param(masked("net.0.q", threshold=0.01), "weights under 0.01 zero ×1", id="threshold"),
        pytest.param(Plan(mask=GlobalMask(0.8, "fisher")), "80 % zero over all layers (fisher)", id="global_mask"),
        pytest.param(Plan({"net.0.mlp/neurons": Prune(8)}, repair="sequential"), "neurons 75 %, repaired in sequence",
                     id="sequential"),
        pytest.param(Plan(distill=Distill()), "λ 0.50, T 2.0, 100 steps", id="distill"),
        pytest.param(Plan(distill=Distill(divergence="jsd", beta=0.25)), "λ 0.50, T 2.0, 100 steps, JSD β 0.25",
                     id="jsd"),
        pytest.param(Plan(distill=Distill(on_policy=0.5)), "λ 0.50, T 2.0, 100 steps, 50 % on policy", id="on_policy"),
        pytest.param(Plan(distill=Distill(terms=Terms(1, cosine=0.5, relations=2, normalised=0.1))),
                     "λ 0.50, T 2.0, 100 steps, hidden 1, cosine 0.5, relations 2, normalised 0.1", id="terms"),
        pytest.param(Plan(distill=Distill(peers=3)), "λ 0.50, T 2.0, 100 steps, 3 peers", id="peers"),
        pytest.param(Plan(distill=Distill(lora=Lora(4))), "λ 0.50, T 2.0, 100 steps, LoRA rank 4", id="lora"),
        pytest.param(Plan(distill=Distill(lora=Lora(base="int4"))), "λ 0.50, T 2.0, 100 steps, QLoRA rank 8",
                     id="qlora"),
        pytest.param(
            Plan(layers={"net.0.q": LayerPlan(quantize=Quantize("int8"))}, distill=Distill(fake_quantize=True)),
            "int8 ×1, λ 0.50, T 2.0, 100 steps, quantization-aware", id="quantization_aware",
        ),
        pytest.param(Plan(learn=Gradual(0.9)), "gradually to 90 % zero", id="gradual"),
        pytest.param(Plan(learn=LotteryTicket(0.8, 5)), "lottery ticket to 80 % zero in 5 rounds", id="ticket"),
        pytest.param(Plan(learn=Cofi(0.6)), "CoFi to 60 %", id="cofi"),
        pytest.param(Plan(learn=Cofi(latency_ratio=0.5)), "CoFi to 0.5 of the latency", id="cofi_latency"),
        pytest.param(
            Plan({"net.1": Prune(0), "net.0.attention/heads": Prune(2)},
                 {"net.0.q": LayerPlan(Factorize(2), Quantize("int8")),
                  "net.0.up": LayerPlan(quantize=Quantize("int8"), mask=Mask(0.5)),
                  "embed": LayerPlan(quantize=Quantize("int8-weights"))},
                 Distill(0.9, 4.0, 1e-4, 30)),
            "heads 50 %, 1 of 2 blocks removed (1), 50 % zero (magnitude) ×1, rank 2, int8-weights ×1, int8 ×2, "
            "λ 0.90, T 4.0, 30 steps", id="everything",
        ),
    ],
)  # fmt: skip
def test_describe(plan, words, table):
    assert describe(plan, table) == words


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"stream/hidden": 48}, "hidden 75 %"),
        ({"first/channels": 4, "second/channels": 3}, "channels 50 %"),
        ({"first/channels": 4}, "channels 71 %"),  # 10 of 14
        ({"f.attn": 0}, "1 attention part removed"),
        ({"f.attn": 0, "s.attn": 0, "s.mlp": 0}, "2 attention parts removed, 1 feed-forward part removed"),
        ({"f.attn": 0, "s.attn/heads": 1}, "heads 50 %, 1 attention part removed"),
        ({"f": 0, "s.mlp": 0}, "1 of 2 blocks removed (0), 1 feed-forward part removed"),
        ({"f.attn/heads": 2, "f.mlp/neurons": 64, "stream/hidden": 32}, "heads 67 %, neurons 71 %, hidden 50 %"),
    ],
)
def test_describe_every_kind_of_group(wide, groups, words):
    assert describe(Plan({name: Prune(keep) for name, keep in groups.items()}), wide) == words


def test_describe_names_the_blocks_that_go_by_their_numbers(make_table):
    table = make_table(6)
    plan = Plan({f"net.{i}": Prune(0) for i in (5, 1, 3)})
    assert describe(plan, table) == "3 of 6 blocks removed (1, 3, 5)"
