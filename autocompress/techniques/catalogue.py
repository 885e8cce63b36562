"""The catalogue of techniques. Plain data.

Every example is a whole plan for the digits demo model, with patterns for names; see `plan_from_json`.
"""

from __future__ import annotations

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
from autocompress.techniques.technique import Technique

Json = dict[str, Any]

ALL = "vit.*"
LINEARS = "vit.layers.*"
FEED_FORWARD = "*.mlp.fc*"
PATCHES = "vit.embeddings.patch_embeddings.projection"


def _masked(layers: str = LINEARS, **mask: Any) -> Json:
    return {"layers": {layers: {"mask": mask}}}


def _quantized(layers: str = LINEARS, **quantize: Any) -> Json:
    return {"layers": {layers: {"quantize": quantize}}}


def _factorized(layers: str = FEED_FORWARD, **factorize: Any) -> Json:
    return {"layers": {layers: {"factorize": factorize}}}


def _kept(**groups: int) -> Json:
    """Groups by kind to what stays of them."""
    return {"groups": {f"*/{kind}": {"keep": keep} for kind, keep in groups.items()}}


def _recovered(base: Json, steps: int = 40, **distill: Any) -> Json:
    return {**base, "distill": {"steps": steps, **distill}}


#: Half of the feed-forward neurons gone: what the recoveries mend in the examples.
HALVED = _kept(neurons=384)

TECHNIQUES: tuple[Technique, ...] = (
    Technique(
        "prune-magnitude",
        "pruning",
        "zero every weight whose size is under a threshold",
        (Mask,),
        "Han et al. 2015, Learning both Weights and Connections, arXiv:1506.02626",
        _masked(threshold=0.03),
    ),
    Technique(
        "prune-random",
        "pruning",
        "zero a share of a layer's weights at random: the baseline",
        (Mask,),
        "torch.nn.utils.prune.random_unstructured; baseline of Blalock et al. 2020, arXiv:2003.03033",
        _recovered(_masked(sparsity=0.2, score="random")),
    ),
    Technique(
        "prune-l1",
        "pruning",
        "zero the share of each layer's weights that is least in size",
        (Mask,),
        "Han et al. 2015, arXiv:1506.02626; torch.nn.utils.prune.l1_unstructured",
        _masked(sparsity=0.5),
    ),
    Technique(
        "prune-global",
        "pruning",
        "zero the least weights of the whole model, wherever they are",
        (GlobalMask,),
        "Frankle & Carbin 2019, arXiv:1803.03635; torch.nn.utils.prune.global_unstructured",
        {"mask": {"sparsity": 0.5}},
    ),
    Technique(
        "prune-ln-structured",
        "pruning",
        "zero whole rows or columns (channels) of least Lₙ norm, without changing shapes",
        (Mask,),
        "Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv:1608.08710; torch.nn.utils.prune.ln_structured",
        _masked("*.mlp.fc1", sparsity=0.25, pattern="rows", norm=2),
    ),
    Technique(
        "prune-nm",
        "pruning",
        "of every M neighbouring inputs keep N, such as 2:4",
        (Mask,),
        "Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, arXiv:2104.08378",
        _masked(FEED_FORWARD, pattern="2:4"),
    ),
    Technique(
        "prune-wanda",
        "pruning",
        "zero the weights of least size times input norm, within each row",
        (Mask,),
        "Sun et al. 2023, A Simple and Effective Pruning Approach for LLMs, arXiv:2306.11695",
        _masked(sparsity=0.5, score="wanda"),
    ),
    Technique(
        "prune-fisher",
        "pruning",
        "zero the weights whose loss would change least by the squared gradient",
        (Mask,),
        "Theis et al. 2018, Faster gaze prediction with Fisher pruning, arXiv:1801.05787",
        _masked(FEED_FORWARD, sparsity=0.5, score="fisher"),
    ),
    Technique(
        "prune-obs",
        "pruning",
        "zero weights by the optimal brain surgeon and re-solve the rest in closed form",
        (Mask,),
        "Hassibi & Stork 1993; Frantar & Alistarh 2023, SparseGPT, arXiv:2301.00774",
        _masked(sparsity=0.6, score="obs"),
    ),
    Technique(
        "prune-heads",
        "pruning",
        "remove attention heads (with the queries that share a key) and repair the output projection",
        (Prune,),
        "Michel et al. 2019, arXiv:1905.10650; Kurtic et al. 2023, ZipLM, arXiv:2302.04089",
        _kept(heads=3),
    ),
    Technique(
        "prune-neurons",
        "pruning",
        "remove feed-forward neurons (with their gates) and repair the second matrix",
        (Prune,),
        "Kurtic et al. 2023, ZipLM, arXiv:2302.04089; Kwon et al. 2022, arXiv:2204.09656",
        HALVED,
    ),
    Technique(
        "prune-hidden",
        "pruning",
        "remove hidden dimensions along the whole residual stream and repair every layer that reads it",
        (Prune,),
        "Xia et al. 2022, CoFi, arXiv:2204.00408; Muralidharan et al. 2024, Minitron, arXiv:2407.14679",
        _recovered(_kept(hidden=160)),
    ),
    Technique(
        "prune-blocks",
        "pruning",
        "remove whole blocks, attention parts or feed-forward parts",
        (Prune,),
        "Fan et al. 2020, LayerDrop, arXiv:1909.11556; Sajjad et al. 2020, arXiv:2004.03844",
        {"groups": {"vit.layers.5": {"keep": 0}, "vit.layers.4/attention": {"keep": 0}}},
    ),
    Technique(
        "prune-channels",
        "pruning",
        "remove channels of convolutions with all that is coupled to them (residuals, concatenation, depthwise, norm); "
        "a Vision Transformer's patch convolution is coupled to its whole residual stream",
        (Prune,),
        "Fang et al. 2023, DepGraph, arXiv:2301.12900",
        _recovered({"groups": {"vit/hidden": {"keep": 176, "score": "magnitude"}}}),
    ),
    Technique(
        "prune-gradual",
        "pruning",
        "let zeros grow on a cubic schedule while training goes on",
        (Gradual,),
        "Zhu & Gupta 2017, To prune, or not to prune, arXiv:1710.01878",
        {"learn": {"recipe": "gradual", "sparsity": 0.7, "steps": 60, "updates": 6}},
    ),
    Technique(
        "lottery-ticket",
        "pruning",
        "train, remove the least weights, rewind the rest to their beginning, and again",
        (LotteryTicket,),
        "Frankle & Carbin 2019, arXiv:1803.03635; Frankle et al. 2020, arXiv:1912.05671",
        {"learn": {"recipe": "lottery-ticket", "sparsity": 0.5, "rounds": 2, "steps": 80, "rewind_steps": 10}},
    ),
    Technique(
        "cofi",
        "pruning",
        "learn masks of whole parts, heads, neurons and hidden dimensions together with the weights",
        (Cofi,),
        "Xia, Zhong & Chen 2022, Structured Pruning Learns Compact and Accurate Models, arXiv:2204.00408",
        {"learn": {"recipe": "cofi", "sparsity": 0.5, "steps": 60, "warmup_steps": 20, "finetune_steps": 20}},
    ),
    Technique(
        "svd",
        "low rank",
        "replace a weight by two factors that change the weight least",
        (Factorize,),
        "Eckart & Young 1936; Denton et al. 2014, arXiv:1404.0736",
        _factorized(rank=96, method="plain"),
    ),
    Technique(
        "svd-activation-aware",
        "low rank",
        "replace a weight by two factors that change the layer's output least on calibration inputs",
        (Factorize,),
        "Yuan et al. 2023, ASVD, arXiv:2312.05821; Wang et al. 2024, SVD-LLM, arXiv:2403.07378",
        _factorized(rank=96),
    ),
    Technique(
        "svd-conv",
        "low rank",
        "split a convolution into two of lower rank, by channels or in space",
        (Factorize,),
        "Jaderberg et al. 2014, arXiv:1405.3866; Zhang et al. 2015, arXiv:1505.06798",
        _factorized(PATCHES, rank=3),
    ),
    Technique(
        "lora-recovery",
        "low rank",
        "recover a compressed model by training low-rank additions, merged on export",
        (Distill, Lora),
        "Hu et al. 2021, LoRA, arXiv:2106.09685",
        _recovered(HALVED, lora={"rank": 8}, learning_rate=1e-3),
    ),
    Technique(
        "qlora-recovery",
        "low rank",
        "the same over a frozen 4-bit base, so that the additions make up for the rounding",
        (Distill, Lora),
        "Dettmers et al. 2023, QLoRA, arXiv:2305.14314",
        _recovered(HALVED, lora={"rank": 8, "base": "int4"}, learning_rate=1e-3),
    ),
    Technique(
        "quant-dynamic",
        "quantization",
        "8-bit weights; inputs rounded to 8 bits by their own range at each call",
        (Quantize,),
        "Krishnamoorthi 2018, arXiv:1806.08342; ONNX DynamicQuantizeLinear",
        _quantized(precision="int8-dynamic"),
    ),
    Technique(
        "quant-static",
        "quantization",
        "8-bit weights and inputs with ranges calibrated beforehand (percentile, min-max or MSE)",
        (Quantize,),
        "Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295",
        _quantized(precision="int8", calibrator="mse"),
    ),
    Technique(
        "quant-smoothquant",
        "quantization",
        "move outliers of the inputs into the weights before both are rounded",
        (Quantize,),
        "Xiao et al. 2022, SmoothQuant, arXiv:2211.10438",
        _quantized(precision="int8", smooth=0.5),
    ),
    Technique(
        "quant-gptq",
        "quantization",
        "round column by column, each column's error made good by those after it",
        (Quantize,),
        "Frantar et al. 2022, GPTQ, arXiv:2210.17323",
        _quantized(precision="int4-weights", rounding="gptq"),
    ),
    Technique(
        "quant-weight-only",
        "quantization",
        "2- to 4-bit weights in groups, computed in float",
        (Quantize,),
        "Dettmers & Zettlemoyer 2023, arXiv:2212.09720; ONNX Runtime MatMulNBits",
        _quantized(precision="int4-weights"),
    ),
    Technique(
        "quant-bias-correction",
        "quantization",
        "put the mean error that rounding causes into the bias",
        (Quantize,),
        "Nagel et al. 2019, Data-Free Quantization, arXiv:1906.04721",
        _quantized(precision="int8", weight_bits=4, bias_correction=True),
    ),
    Technique(
        "quant-aware-training",
        "quantization",
        "recover with rounded weights and inputs in the forward pass",
        (Distill, Quantize),
        "Jacob et al. 2018, arXiv:1712.05877; Esser et al. 2020, arXiv:1902.08153",
        _recovered(_quantized(precision="int8", weight_bits=4), fake_quantize=True, learning_rate=1e-4),
    ),
    Technique(
        "quant-embedding",
        "quantization",
        "8- or 4-bit embeddings (of a Vision Transformer: its patch convolution)",
        (Quantize,),
        "Zafrir et al. 2019, Q8BERT, arXiv:1910.06188; ONNX Runtime GatherBlockQuantized",
        _quantized(PATCHES, precision="int8"),
    ),
    Technique(
        "half-precision",
        "quantization",
        "16-bit floating-point weights",
        (Quantize,),
        "Micikevicius et al. 2018, arXiv:1710.03740",
        _quantized(ALL, precision="fp16"),
    ),
    Technique(
        "kd-logits",
        "distillation",
        "learn from the dense model's softened predictions: (1-λ)·hard + λ·T²·KL",
        (Distill,),
        "Hinton, Vinyals & Dean 2015, arXiv:1503.02531",
        _recovered(HALVED, soft_weight=0.9, temperature=4.0),
    ),
    Technique(
        "kd-hidden",
        "distillation",
        "match hidden states through a learned linear map, statically or to the nearest layer",
        (Distill, Terms),
        "Jiao et al. 2020, TinyBERT, arXiv:1909.10351; Xia et al. 2022, CoFi, arXiv:2204.00408",
        _recovered(HALVED, terms={"hidden": 1.0, "hidden_map": "dynamic"}),
    ),
    Technique(
        "kd-cosine",
        "distillation",
        "turn the last hidden states the teacher's way",
        (Distill, Terms),
        "Sanh et al. 2019, DistilBERT, arXiv:1910.01108",
        _recovered(HALVED, terms={"cosine": 1.0}),
    ),
    Technique(
        "kd-relations",
        "distillation",
        "match the relations among queries, keys and values of the last block",
        (Distill, Terms),
        "Wang et al. 2020, MiniLM, arXiv:2002.10957; Wang et al. 2021, MiniLMv2, arXiv:2012.15828",
        _recovered(HALVED, terms={"relations": 1.0}),
    ),
    Technique(
        "kd-normalised",
        "distillation",
        "match hidden states per token, as a share of the teacher's size",
        (Distill, Terms),
        "Kurtic et al. 2023, ZipLM, arXiv:2302.04089",
        _recovered(HALVED, terms={"normalised": 1.0}),
    ),
    Technique(
        "kd-online",
        "distillation",
        "several students that learn from the labels and from each other",
        (Distill,),
        "Zhang et al. 2018, Deep Mutual Learning, arXiv:1706.00384",
        _recovered(HALVED, peers=2),
    ),
    Technique(
        "kd-jsd",
        "distillation",
        "the generalised Jensen-Shannon divergence between teacher and student, forward to reverse by β",
        (Distill,),
        "Agarwal et al. 2023, On-Policy Distillation of Language Models, arXiv:2306.13649",
        _recovered(HALVED, divergence="jsd", beta=0.3),
    ),
    Technique(
        "student-depth",
        "distillation",
        "a student of every second block, trained as DistilBERT was: 5·logits + 2·task + 1·cosine",
        (Prune, Distill, Terms),
        "Sanh et al. 2019, DistilBERT, arXiv:1910.01108",
        _recovered(
            {"groups": {f"vit.layers.{i}": {"keep": 0} for i in (1, 3, 5)}},
            soft_weight=5 / 7,
            terms={"cosine": 1 / 7},
        ),
    ),
    Technique(
        "student-width",
        "distillation",
        "a narrower student that starts from the dense model's most important dimensions",
        (Prune, Distill, Terms),
        "Sun et al. 2020, MobileBERT, arXiv:2004.02984; Muralidharan et al. 2024, Minitron, arXiv:2407.14679",
        _recovered(_kept(hidden=128, heads=4, neurons=384), 60, terms={"hidden": 1.0}),
    ),
)
