"""Training low-rank additions instead of weights, through peft: LoRA (Hu et al. 2021), QLoRA (Dettmers et al. 2023)."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from autocompress.compressing.codes import quantize_weight
from autocompress.errors import ModelError
from autocompress.plan import Lora, Quantize


def adaptable(model: nn.Module, held: Collection[str] = ()) -> list[str]:
    """Names of the linears that can take an addition.

    Left out are weights that another module shares, where the addition would be merged into both, and those whose zeros
    are `held` (names of weights), which an addition would fill.
    """
    owners = Counter(id(w) for m in model.modules() for w in m.parameters(recurse=False))
    return [
        name
        for name, module in model.named_modules()
        if name and type(module) is nn.Linear and owners[id(module.weight)] == 1 and f"{name}.weight" not in held
    ]


@contextlib.contextmanager
def additions(model: nn.Module, settings: Lora, held: Collection[str] = ()) -> Iterator[None]:
    """Inside, every adaptable linear computes ``W·x + (alpha / rank)·B·A·x`` and only A and B are trainable.

    B starts at zero, so that entering changes no output. On exit the additions are merged: the same linears are back
    under the same names, with the weight ``W + (alpha / rank)·B·A``. With base "int4", W is what the 4-bit integers of
    the dense weight stand for, inside and after; the integers of the exported file are made of the sum, later. After an
    error nothing is merged. Norms, biases and all other weights are frozen inside.

    Args:
        model: edited in place.
        settings: rank, scale and base.
        held: names of weights whose zeros must stay.

    Raises:
        ModelError: no linear can take an addition.
    """
    from peft import LoraConfig, LoraModel  # 5 seconds, which only this needs

    names = adaptable(model, held)
    if not names:
        raise ModelError(
            f"lora finds no linear in {type(model).__name__} to add to: each shares its weight or holds zeros of the "
            "plan, or there is none; leave lora out"
        )
    trainable = {name: weight.requires_grad for name, weight in model.named_parameters()}
    if settings.base == "int4":
        _round_to_four_bits(model, names)
    exactly = "|".join(re.escape(name) for name in names)
    scale: Any = settings.alpha  # peft's annotation says int, its arithmetic takes any number
    config = LoraConfig(r=settings.rank, lora_alpha=scale, lora_dropout=0.0, target_modules=exactly)
    wrapped = LoraModel(model, config, "default")
    merged = False
    try:
        yield
        wrapped.merge_and_unload(safe_merge=True)
        merged = True
    finally:
        if not merged:
            wrapped.unload()
        for name, weight in model.named_parameters():
            weight.requires_grad_(trainable[name])


def _round_to_four_bits(model: nn.Module, names: Collection[str]) -> None:
    with torch.no_grad():
        for name in names:
            weight = model.get_parameter(f"{name}.weight")
            weight.copy_(quantize_weight(weight.detach(), Quantize("int4-weights")).weight())
