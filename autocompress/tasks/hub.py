"""Loading a Hugging Face model and its processor, from a folder or the hub, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.errors import ModelError


def silence() -> None:
    """Keep the progress bars of transformers out of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_pretrained(auto_class: Any, source: str | Path, **options: Any) -> Any:
    """``auto_class.from_pretrained(source)``.

    Raises:
        ModelError: the folder is no model, or the hub cannot be reached.
    """
    silence()
    path = Path(source)
    if str(source).startswith((".", "/", "~")) and not path.expanduser().is_dir():
        raise ModelError(f"--model {source}: no such folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"--model {source}: not a Hugging Face folder (it holds no config.json)")
    try:
        return auto_class.from_pretrained(path.expanduser() if path.expanduser().is_dir() else str(source), **options)
    except Exception as fault:  # transformers lets through those of several libraries
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        if path.is_dir():
            raise ModelError(f"--model {source}: {auto_class.__name__} cannot load it: {reason}") from fault
        raise ModelError(
            f"--model {source}: no such folder here, and the hub gave no model of that name ({reason}); "
            "without a network give a folder that save_pretrained wrote"
        ) from fault


def load_model(auto_class: Any, source: str | Path, trained: bool = True) -> nn.Module:
    """A model in fp32 and evaluation mode.

    Args:
        auto_class: of transformers.
        source: folder or hub id.
        trained: whether every weight must be in the checkpoint; a student may have some that are yet to be taught.

    Raises:
        ModelError: it cannot be loaded, or lacks weights: transformers would draw them at random.
    """
    model: nn.Module
    model, told = load_pretrained(
        auto_class, source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    lacking = sorted(
        {*told["missing_keys"], *(key if isinstance(key, str) else key[0] for key in told["mismatched_keys"])}
    )
    if trained and lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        raise ModelError(
            f"--model {source}: holds no weights for {shown} of {type(model).__name__}, which would be random; give a "
            "model that was trained for this task"
        )
    return model.eval()


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Class names in the order of the logits, from the model's config."""
    config: Any = model.config
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))
