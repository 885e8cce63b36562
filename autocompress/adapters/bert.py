"""BERT, MiniLM and RoBERTa encoders of transformers (post-norm, separate query, key and value)."""

from __future__ import annotations

from torch import nn

from autocompress.adapters.encoder import EncoderBlock, find_blocks
from autocompress.layers import Group

BLOCK = EncoderBlock(
    attention="attention",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    head_width="attention.self.attention_head_size",
)


def groups(model: nn.Module) -> list[Group]:
    """Heads, neurons and blocks; none for decoders, whose cache needs every layer."""
    if getattr(getattr(model, "config", None), "is_decoder", False):
        return []
    return find_blocks(model, ("BertLayer", "RobertaLayer"), BLOCK)
