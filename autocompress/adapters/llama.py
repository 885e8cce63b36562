"""Llama, Mistral and Qwen2 of transformers: pre-norm decoders with gated neurons and shared key/value heads."""

from __future__ import annotations

from autocompress.adapters.family import Family, Stream
from autocompress.layers import Stub

FAMILY = Family(
    blocks=("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"),
    layers="layers",
    attention="self_attn",
    projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    head_width="self_attn.head_dim",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    pre_norm=True,
    attention_stubs=(Stub("input_layernorm"), Stub("self_attn", "constant-pair")),
    feed_forward_stubs=(Stub("post_attention_layernorm"), Stub("mlp", "constant")),
    stream=Stream(writers=("embed_tokens",), norms=("norm",), readers=("lm_head", "score", "qa_outputs")),
    causal=True,
)
