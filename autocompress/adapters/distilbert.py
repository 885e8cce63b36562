"""DistilBERT of transformers: a post-norm encoder without token types and pooler."""

from __future__ import annotations

from autocompress.adapters.family import Family, Stream
from autocompress.layers import Stub

FAMILY = Family(
    blocks=("TransformerBlock",),
    layers="transformer.layer",
    attention="attention",
    projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    output="attention.out_lin",
    head_width="attention.attention_head_size",
    up=("ffn.lin1",),
    down="ffn.lin2",
    norms=("sa_layer_norm", "output_layer_norm"),
    pre_norm=False,
    attention_stubs=(Stub("attention", "constant-pair"),),
    feed_forward_stubs=(Stub("ffn", "constant"),),
    stream=Stream(
        writers=("embeddings.word_embeddings", "embeddings.position_embeddings"),
        norms=("embeddings.LayerNorm",),
        readers=("pre_classifier", "classifier", "qa_outputs"),
    ),
)
