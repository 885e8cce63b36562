"""Vision Transformers of transformers (pre-norm)."""

from __future__ import annotations

from torch import nn

from autocompress.adapters.encoder import EncoderBlock, find_blocks
from autocompress.layers import Group

BLOCK = EncoderBlock(
    attention="attention",
    projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    output="attention.o_proj",
    up="mlp.fc1",
    down="mlp.fc2",
    head_width="attention.head_dim",
)


def groups(model: nn.Module) -> list[Group]:
    """Heads, neurons and blocks."""
    return find_blocks(model, ("ViTLayer",), BLOCK)
