"""Vision Transformers of transformers: pre-norm encoders of image patches."""

from __future__ import annotations

from autocompress.adapters.family import Family, Stream
from autocompress.layers import Stub

FAMILY = Family(
    blocks=("ViTLayer",),
    layers="layers",
    attention="attention",
    projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    output="attention.o_proj",
    head_width="attention.head_dim",
    up=("mlp.fc1",),
    down="mlp.fc2",
    norms=("layernorm_before", "layernorm_after"),
    pre_norm=True,
    attention_stubs=(Stub("layernorm_before"), Stub("attention", "constant-pair")),
    feed_forward_stubs=(Stub("layernorm_after"), Stub("mlp", "constant")),
    stream=Stream(
        writers=("embeddings.patch_embeddings.projection",),
        norms=("layernorm",),
        readers=("pooler.dense", "classifier"),
        parameters=("embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings"),
    ),
)
