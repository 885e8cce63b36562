"""A table by hand with every kind of group: fused q, k, v; shared keys; a hidden width; channels; whole parts."""

from __future__ import annotations

import math

import pytest

from autocompress.layers import Group, GroupKind, Layer, LayerKind, LayerTable, Slice, Stub


def _layer(name: str, kind: LayerKind, shape: tuple[int, ...], block: str = "", **why_not: str) -> Layer:
    return Layer(name, kind, shape, math.prod(shape), 0 if kind == "embedding" else math.prod(shape), block, why_not)


def _part(name: str, kind: GroupKind, block: str, removes: tuple[str, ...]) -> Group:
    gives = "input" if kind == "block" else "constant-pair" if kind == "attention" else "constant"
    return Group(name, kind, 1, block=block, removes=removes, stubs=(Stub(name, gives),))


def _fused_block() -> tuple[list[Layer], list[Group]]:
    """Block ``f``: 4 heads of width 16, queries, keys and values in one weight; 128 neurons."""
    shapes = {"f.attn.qkv": (192, 64), "f.attn.out": (64, 64), "f.mlp.up": (128, 64), "f.mlp.down": (64, 128)}
    heads = tuple(Slice("f.attn.qkv", 16, offset) for offset in (0, 64, 128))
    groups = [
        Group("f.attn/heads", "heads", 4, heads, (Slice("f.attn.out", 16),), block="f"),
        Group("f.mlp/neurons", "neurons", 128, (Slice("f.mlp.up"),), (Slice("f.mlp.down"),), block="f"),
        _part("f.attn", "attention", "f", ("f.attn.qkv", "f.attn.out")),
        _part("f.mlp", "feed_forward", "f", ("f.mlp.up", "f.mlp.down")),
        _part("f", "block", "f", tuple(shapes)),
    ]
    return [_layer(name, "linear", shape, "f") for name, shape in shapes.items()], groups


def _shared_block() -> tuple[list[Layer], list[Group]]:
    """Block ``s``: 4 heads of width 16 that share 2 keys and values; 96 gated neurons."""
    shapes = {
        "s.attn.q": (64, 64), "s.attn.k": (32, 64), "s.attn.v": (32, 64), "s.attn.o": (64, 64),
        "s.mlp.gate": (96, 64), "s.mlp.up": (96, 64), "s.mlp.down": (64, 96),
    }  # fmt: skip
    heads = (Slice("s.attn.q", 32), Slice("s.attn.k", 16), Slice("s.attn.v", 16))
    gated = (Slice("s.mlp.gate"), Slice("s.mlp.up"))
    names = tuple(shapes)
    groups = [
        Group("s.attn/heads", "heads", 2, heads, (Slice("s.attn.o", 32),), block="s"),
        Group("s.mlp/neurons", "neurons", 96, gated, (Slice("s.mlp.down"),), block="s"),
        _part("s.attn", "attention", "s", names[:4]),
        _part("s.mlp", "feed_forward", "s", names[4:]),
        _part("s", "block", "s", names),
    ]
    return [_layer(name, "linear", shape, "s") for name, shape in shapes.items()], groups


def _hidden() -> Group:
    """The stream of width 64: written by embedding and outputs, read by all else, carried by norms and a token."""
    writers = ("embed", "f.attn.out", "f.mlp.down", "s.attn.o", "s.mlp.down")
    readers = ("f.attn.qkv", "f.mlp.up", "s.attn.q", "s.attn.k", "s.attn.v", "s.mlp.gate", "s.mlp.up", "head")
    carriers = (Slice("positions"), Slice("norm"), Slice("token", axis=2))
    return Group("stream/hidden", "hidden", 64, tuple(map(Slice, writers)), tuple(map(Slice, readers)), carriers)


def _convolutions() -> tuple[list[Layer], list[Group]]:
    """``first`` → depthwise ``each`` → ``second``, read by ``third`` at every other input, and ``flat``."""
    layers = [
        _layer("first", "conv", (8, 3, 3, 5)),
        _layer("each", "conv", (8, 1, 3, 3), factorize="it is depthwise", mask="it is depthwise"),
        _layer("second", "conv", (6, 8, 1, 1)),
        _layer("third", "conv", (5, 12, 3, 3)),
        _layer("flat", "linear", (3, 24)),
    ]
    carriers = (Slice("each"), Slice("each_norm"))
    mixed = (Slice("third", index=(0, 2, 4, 6, 8, 10)), Slice("flat", 4))
    groups = [
        Group("first/channels", "channels", 8, (Slice("first"),), (Slice("second"),), carriers),
        Group("second/channels", "channels", 6, (Slice("second"),), mixed),
    ]
    return layers, groups


@pytest.fixture(scope="session")
def wide() -> LayerTable:
    fused, shared, convolutions = _fused_block(), _shared_block(), _convolutions()
    layers = [
        _layer("embed", "embedding", (40, 64), mask="its rows are looked up"),
        _layer("positions", "embedding", (20, 64), quantize="it is added", mask="it is added", factorize="it is added"),
        *fused[0],
        *shared[0],
        _layer("head", "linear", (10, 64)),
        *convolutions[0],
    ]
    groups = [*fused[1], *shared[1], _hidden(), *convolutions[1]]
    return LayerTable(tuple(layers), tuple(groups), sum(layer.params for layer in layers))
