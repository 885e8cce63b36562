"""What reads a convolution's output, seen by running the model once: norms that fold into it, and ReLUs behind it."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from autocompress.survey import evaluating, hooked
from autocompress.tasks.task import Examples

Norm = nn.BatchNorm2d
Key = tuple[int, int]


@dataclass(frozen=True)
class Flow:
    """How the outputs of some convolutions are read.

    Attributes:
        norms: convolution to the BatchNorm that alone reads its output.
        rectified: convolutions whose output, behind that norm, nothing but ReLUs read.
        feeds: layer to the convolution whose output, behind norm and ReLU, is its very input.
    """

    norms: Mapping[str, str] = field(default_factory=dict)
    rectified: frozenset[str] = frozenset()
    feeds: Mapping[str, str] = field(default_factory=dict)


def flow_of(model: nn.Module, convolutions: Iterable[str], layers: Iterable[str], examples: Examples) -> Flow:
    """Run two samples through the model and see what reads the outputs of `convolutions`, `layers` among it.

    A convolution that is called more than once is left out.
    """
    record = _Record()
    names = {*convolutions, *layers, *(name for name, module in model.named_modules() if isinstance(module, Norm))}
    modules = {name: model.get_submodule(name) for name in names}
    before = (module.register_forward_pre_hook(record.entering(name)) for name, module in modules.items())
    after = (module.register_forward_hook(record.leaving(name)) for name, module in modules.items())
    # versions of tensors, which tell what is changed in place, are not counted in inference mode
    with hooked(before), hooked(after), evaluating(model), torch.inference_mode(False), torch.no_grad(), record:
        model(**examples.batch(range(min(2, len(examples))))[0])
    return _read_off(record, model, list(convolutions), list(layers))


def _read_off(record: _Record, model: nn.Module, convolutions: list[str], layers: list[str]) -> Flow:
    norms, rectified, ends = {}, set(), {}
    owners = {record.taken[name]: name for name in record.taken if isinstance(model.get_submodule(name), Norm)}
    for name in convolutions:
        if record.calls[name] != 1:
            continue
        end = record.given[name]
        norm = owners.get(end, "")
        alone = len(record.readers[end]) == 1 and record.calls[norm] == 1
        if norm and alone and _is_fixed(model.get_submodule(norm)):
            norms[name] = norm
            end = record.given[norm]
        ends[end] = name
        readers = record.readers[end]
        if readers and all(operator in ("relu", "relu_") for operator, _outputs in readers):
            rectified.add(name)
            ends.update({output: name for _operator, outputs in readers for output in outputs})
    feeds = {la: ends[record.taken[la]] for la in layers if record.calls[la] == 1 and record.taken[la] in ends}
    return Flow(norms, frozenset(rectified), feeds)


def _is_fixed(norm: nn.Module) -> bool:
    """Whether a norm has statistics of its own in evaluation mode."""
    return getattr(norm, "running_mean", None) is not None


class _Record(TorchFunctionMode):
    """Notes which torch function reads which tensor. Tensors are kept, so that no two have one identity."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: defaultdict[Key, list[tuple[str, list[Key]]]] = defaultdict(list)
        self.taken: dict[str, Key] = {}
        self.given: dict[str, Key] = {}
        self.calls: Counter[str] = Counter()
        self._kept: list[Tensor] = []

    def _key(self, value: Tensor) -> Key:
        self._kept.append(value)
        return id(value), 0 if value.is_inference() else value._version

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = {self._key(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        outputs = [self._key(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if outputs:  # the others ask for a shape or a type
            for key in inputs:
                self.readers[key].append((func.__name__, outputs))
        return result

    def entering(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.calls[name] += 1
            self.taken[name] = self._key(args[0])

        return hook

    def leaving(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.given[name] = self._key(output)

        return hook


def norm_gain(norm: nn.Module) -> Tensor:
    """What a BatchNorm in evaluation mode multiplies each channel by, ``(channels,)``."""
    assert isinstance(norm, Norm)
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    return gain if norm.weight is None else gain * norm.weight.detach()


def folded_bias(convolution: nn.Module, norm: nn.Module) -> Tensor:
    """The bias of the convolution that computes what it and its BatchNorm do, ``(channels,)``."""
    assert isinstance(norm, Norm)
    assert norm.running_mean is not None
    bias: Tensor | None = getattr(convolution, "bias", None)
    moved = -norm.running_mean if bias is None else bias.detach() - norm.running_mean
    moved = moved * norm_gain(norm)
    return moved if norm.bias is None else moved + norm.bias.detach()


def fold_norms(model: nn.Module, norms: Mapping[str, str]) -> nn.Module:
    """A copy of the model whose convolutions do what the BatchNorms behind them did; those become identities."""
    if not norms:
        return model
    folded = copy.deepcopy(model)
    for name, norm_name in norms.items():
        convolution, norm = folded.get_submodule(name), folded.get_submodule(norm_name)
        bias = folded_bias(convolution, norm)
        weight: Tensor = convolution.weight.detach()  # type: ignore[operator]
        convolution.weight = nn.Parameter(weight * norm_gain(norm).reshape(-1, 1, 1, 1))
        convolution.bias = nn.Parameter(bias)
        folded.set_submodule(norm_name, nn.Identity())
    return folded
