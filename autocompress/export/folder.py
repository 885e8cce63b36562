"""A compressed torch model in a folder of the Hugging Face kind, and `from_pretrained`, which reads it again.

The folder holds config.json and the processor's files, plan.json, layers.json and weights.safetensors. A rounded
layer's weight lies there as the integers that were graded, with their scales and the steps of its activations: the
file is as small as the plan promises, and the model that is read computes what the exported file was held against, bit
for bit, which float weights without the rounding of their inputs would not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compressing.codes import Codes, Steps
from autocompress.compressing.quantize import Quantized, simulate
from autocompress.compressing.shape import restore
from autocompress.errors import ConfigError, ExportError, ModelError
from autocompress.export.forms import pack_four_bits, unpack_four_bits
from autocompress.export.fresh import check_deviation, run_fresh
from autocompress.layers import LayerTable
from autocompress.plan import plan_from_json
from autocompress.records import storage_errors, write_atomic
from autocompress.weights import parameter_at

WEIGHTS, PLAN, LAYERS = "weights.safetensors", "plan.json", "layers.json"
#: Beside a run's float weights: what rounding made of them.
INTEGERS = "integers.safetensors"
#: Where a picked model's folder keeps this format.
FOLDER = "transformers"

#: Parts of one layer's codes in a file, behind the layer's name.
PARTS = ("codes", "scales", "zeros")
#: What its smoothed input is multiplied by.
FACTORS = "input_factors"
#: Activations that it rounds.
SIDES = ("input", "output")

State = dict[str, Tensor]


def save_integers(model: nn.Module, made: Quantized, path: Path) -> None:
    """Keep what `quantize` made of a model: integers, and the floats that it changed. Nothing where it did nothing.

    Args:
        model: in float, as `pipeline.save_weights` keeps it.
        made: of it.
        path: the .safetensors to write.
    """
    if not made.codes:
        path.unlink(missing_ok=True)
        return
    before, state = model.state_dict(), _packed(made.codes)
    rounded = {f"{name}.weight" for name in made.codes}
    added = []
    for name, value in made.model.state_dict().items():
        if name in rounded:
            continue
        if name not in before:
            added.append(name)
        elif torch.equal(value, before[name]):
            continue
        state[name] = value.detach().clone().contiguous()
    state |= {f"{name}.{FACTORS}": factors for name, factors in _input_factors(made.model)}
    modules = dict(model.named_modules())
    folded = [
        name
        for name, module in made.model.named_modules()
        if isinstance(module, nn.Identity) and not isinstance(modules[name], nn.Identity)
    ]
    notes = {"codes": _notes(made.codes), "added": added, "folded": folded}
    with storage_errors(path):
        write_atomic(path, safetensors.torch.save(state, {key: json.dumps(value) for key, value in notes.items()}))


def _input_factors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Layers whose inputs are multiplied on their way in, as smoothing leaves them, and by what."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            factors = getattr(hook, "inverse", None)
            if isinstance(factors, Tensor):
                yield name, factors.contiguous()


class _Multiply:
    """A forward pre-hook that multiplies a layer's input."""

    def __init__(self, factors: Tensor) -> None:
        self.inverse = factors

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * self.inverse, *args[1:])


def _packed(codes: Mapping[str, Codes]) -> State:
    """Tensors of the codes; two 4-bit codes per byte."""
    state = {}
    for name, made in codes.items():
        values, zeros = made.values, made.zeros
        if made.precision == "int4-weights":
            values = torch.from_numpy(pack_four_bits(values.numpy()))
            zeros = None if zeros is None else torch.from_numpy(pack_four_bits(zeros.numpy()))
        for part, value in zip(PARTS, (values, made.scales, zeros), strict=True):
            if value is not None and value.numel():
                state[f"{name}.{part}"] = value.contiguous()
    return state


def _notes(codes: Mapping[str, Codes]) -> dict[str, Any]:
    """What of the codes is no tensor."""
    return {
        name: {
            "precision": made.precision,
            "shape": list(made.values.shape),
            **{side: asdict(steps) for side in SIDES if (steps := getattr(made, side))},
        }
        for name, made in codes.items()
    }


def _unpacked(name: str, note: Mapping[str, Any], state: State) -> Codes:
    """Take a layer's codes out of a file's tensors."""
    values, scales, zeros = (state.pop(f"{name}.{part}", None) for part in PARTS)
    assert values is not None
    if note["precision"] == "int4-weights":
        assert scales is not None
        values = torch.from_numpy(unpack_four_bits(values.numpy(), note["shape"][-1]))
        zeros = None if zeros is None else torch.from_numpy(unpack_four_bits(zeros.numpy(), scales.shape[-1]))
    steps = [Steps(**note[side]) if side in note else None for side in SIDES]
    return Codes(note["precision"], values, torch.zeros(0) if scales is None else scales, zeros, *steps)


def write_folder(source: Path, run: Path, out: Path) -> None:
    """Gather a candidate's torch model in a folder that `from_pretrained` reads.

    Args:
        source: the candidate's folder in a run: plan.json, float weights, and the integers where it has any.
        run: the run folder: layers.json, and the model's config with the processor's files, if any.
        out: the folder to write.

    Raises:
        ConfigError: the candidate's weights were not kept.
    """
    if not (source / WEIGHTS).is_file():
        raise ConfigError(
            f"{source / WEIGHTS} is not there: float weights are kept of models that no other beats in both latency "
            "and quality; choose one of those, or another format"
        )
    state, notes = read_state(source / WEIGHTS)
    if (source / INTEGERS).is_file():
        integers, notes = read_state(source / INTEGERS)
        rounded = {f"{name}.weight" for name in notes["codes"]}
        state = {name: value for name, value in state.items() if name not in rounded} | integers
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if (run / "processor").is_dir():
            shutil.copytree(run / "processor", out, dirs_exist_ok=True)
        for path in (source / PLAN, run / LAYERS):
            shutil.copy2(path, out / path.name)
        notes = {key: json.dumps(value) for key, value in notes.items()}
        write_atomic(out / WEIGHTS, safetensors.torch.save(state, notes))


def read_state(path: Path) -> tuple[State, dict[str, Any]]:
    """Tensors and notes of a file; raises `ModelError` where it is no .safetensors."""
    try:
        with safetensors.safe_open(path, "pt") as stored:
            notes = {key: json.loads(value) for key, value in (stored.metadata() or {}).items() if key in NOTES}
            return {name: stored.get_tensor(name) for name in stored.keys()}, notes  # noqa: SIM118  (no mapping)
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as fault:
        raise ModelError(f"{path}: cannot be read: {fault}") from fault


NOTES = ("codes", "added", "folded")


def from_pretrained(folder: str | Path, make_model: Callable[[], nn.Module] | None = None) -> nn.Module:
    """A compressed torch model from a folder of the format "transformers", in evaluation mode.

    It computes in float what the exported integers compute: weights are their values, and inputs are rounded where the
    plan rounds them.

    Args:
        folder: that folder, or a picked model's, which holds one.
        make_model: gives the dense architecture with any weights, for models that are not of transformers.

    Raises:
        ConfigError: the folder holds no such model.
        ModelError: its files do not fit the architecture, or there is none.
    """
    path = Path(folder)
    if not (path / LAYERS).is_file() and (path / FOLDER).is_dir():
        path = path / FOLDER
    for name in (PLAN, LAYERS, WEIGHTS):
        if not (path / name).is_file():
            raise ConfigError(
                f"{path}: no compressed torch model (it holds no {name}); --format transformers makes one"
            )
    made = read_model(path, make_model)
    return simulate(made.model, made.codes) if made.codes else made.model


def read_model(path: Path, make_model: Callable[[], nn.Module] | None = None) -> Quantized:
    """Model and codes of a folder that `write_folder` wrote; rounded weights are the values of their codes."""
    plan = plan_from_json(_json(path / PLAN), str(path / PLAN))
    table = LayerTable.from_json(_json(path / LAYERS))
    state, notes = read_state(path / WEIGHTS)
    codes = {name: _unpacked(name, note, state) for name, note in notes.get("codes", {}).items()}
    added = {name: state.pop(name) for name in notes.get("added", ())}
    factors = {name: state.pop(f"{name}.{FACTORS}", None) for name in codes}
    values = {f"{name}.weight": made.weight() for name, made in codes.items()}
    dense = make_model() if make_model else _architecture(path)
    try:
        model = restore(dense, plan, table, values | state)
    except (RuntimeError, AttributeError) as fault:
        raise ModelError(f"{path / WEIGHTS}: does not fit {type(dense).__name__} under its plan: {fault}") from fault
    for name in notes.get("folded", ()):
        model.set_submodule(name, nn.Identity())
    for name, value in added.items():
        owner, leaf = parameter_at(model, name)
        setattr(owner, leaf, nn.Parameter(value))
    for name, factor in factors.items():
        if factor is not None:
            model.get_submodule(name).register_forward_pre_hook(_Multiply(factor))
    return Quantized(model, codes)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _architecture(path: Path) -> nn.Module:
    """The dense model that config.json describes, with weights drawn by chance."""
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path}: holds no config.json, for its model is not of transformers; give make_model, a function that "
            "returns the dense model"
        )
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    names = config.architectures or ["none"]
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise ModelError(
            f"{path / 'config.json'}: architectures: transformers has no class {names[0]!r}; give make_model, a "
            "function that returns the dense model"
        )
    model: nn.Module = kind(config)
    return model.to(torch.float32).eval()


_RELOAD = """\
import sys, numpy, torch
from autocompress.export.folder import from_pretrained
from autocompress.tasks.task import logits_of
folder, inputs, outputs = sys.argv[1:]
with numpy.load(inputs, allow_pickle=False) as arrays, torch.inference_mode():
    given = {name: torch.from_numpy(value) for name, value in arrays.items()}
    numpy.save(outputs, logits_of(from_pretrained(folder)(**given)).numpy(), allow_pickle=False)
"""


def check_folder(folder: Path, inputs: Path, expected: NDArray[Any], most: float) -> float:
    """Relative L2 distance of a fresh process's outputs from the graded file's.

    Raises:
        ExportError: it is above `most`, or the process cannot load the folder.
    """
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder}: format transformers needs a model of transformers, whose config the run keeps")
    return check_deviation(folder, run_fresh(_RELOAD, [str(folder), str(inputs)], folder), expected, most)
