"""BERT, MiniLM and RoBERTa of transformers: post-norm encoders with separate query, key and value."""

from __future__ import annotations

from autocompress.adapters.family import Family, Stream
from autocompress.layers import Stub

FAMILY = Family(
    blocks=("BertLayer", "RobertaLayer"),
    layers="encoder.layer",
    attention="attention",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    output="attention.output.dense",
    head_width="attention.self.attention_head_size",
    up=("intermediate.dense",),
    down="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    pre_norm=False,
    attention_stubs=(Stub("attention.self", "input-pair"), Stub("attention.output.dense", "constant")),
    feed_forward_stubs=(Stub("intermediate", "input"), Stub("output.dense", "constant")),
    stream=Stream(
        writers=(
            "embeddings.word_embeddings",
            "embeddings.position_embeddings",
            "embeddings.token_type_embeddings",
        ),
        norms=("embeddings.LayerNorm",),
        readers=("pooler.dense", "classifier.dense", "classifier", "qa_outputs"),
    ),
)
