"""GPT-2 of transformers: a pre-norm decoder with one fused projection for query, key and value."""

from __future__ import annotations

from autocompress.adapters.family import Family, Stream
from autocompress.layers import Stub

FAMILY = Family(
    blocks=("GPT2Block",),
    layers="h",
    attention="attn",
    projections=("attn.c_attn",),
    output="attn.c_proj",
    head_width="attn.head_dim",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    norms=("ln_1", "ln_2"),
    pre_norm=True,
    attention_stubs=(Stub("ln_1"), Stub("attn", "constant-pair")),
    feed_forward_stubs=(Stub("ln_2"), Stub("mlp", "constant")),
    stream=Stream(writers=("wte", "wpe"), norms=("ln_f",), readers=("lm_head", "score", "classifier", "qa_outputs")),
    fused_width="attn.split_size",
    causal=True,
)
