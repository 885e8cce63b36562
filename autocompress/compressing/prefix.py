"""A dense forward pass that can be gone through again from somewhere in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from autocompress.survey import hooked
from autocompress.tasks.task import Inputs, logits_of

#: Bytes of outputs of one batch that are kept to be given again.
CACHE_BYTES = 1_000_000_000


class Prefix:
    """When modules ran in a dense pass and what they gave, to give it again without computing.

    Args:
        model: whose forward calls the modules in the same order each time.
        names: modules whose calls are noted; where there is no room for all outputs, the first ones are kept.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.modules = {name: model.get_submodule(name) for name in names}
        self.model = model
        self.clock = 0
        self.starts: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.given: dict[str, Any] = {}
        self.again: set[str] = set()

    def record(self, inputs: Inputs) -> Tensor:
        """The dense logits; forgets the batch before."""
        self.clock = 0
        for kept in (self.starts, self.ends, self.given, self.again):
            kept.clear()
        before = (module.register_forward_pre_hook(self._entering(name)) for name, module in self.modules.items())
        after = (module.register_forward_hook(self._leaving(name)) for name, module in self.modules.items())
        with hooked(before), hooked(after):
            logits = logits_of(self.model(**inputs))
        self._make_room()
        return logits

    def first(self, names: Iterable[str]) -> int:
        """When the first of some layers was called."""
        return min((self.starts[name] for name in names if name in self.starts), default=0)

    @contextlib.contextmanager
    def replaying(self, until: int, model: nn.Module | None = None) -> Iterator[None]:
        """Inside, modules that ended before a time give what they gave; `model` is another one of the same names."""
        ready = [name for name in self.given if self.ends[name] <= until and name not in self.again]
        modules = [self.modules[name] if model is None else model.get_submodule(name) for name in ready]
        try:
            for name, module in zip(ready, modules, strict=True):
                module.__dict__["forward"] = _Given(self.given[name])
            yield
        finally:
            for module in modules:
                module.__dict__.pop("forward", None)

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(*_given: Any) -> None:
            if name in self.starts:
                self.again.add(name)  # called more than once: which output is wanted when cannot be told
            self.starts.setdefault(name, self.clock)
            self.clock += 1

        return hook

    def _leaving(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self.ends[name] = self.clock
            self.given[name] = tree_map(_copied, output)

        return hook

    def _make_room(self) -> None:
        """Forget what is over the limit."""
        total = 0
        for name in self.modules:
            total += sum(_bytes(leaf) for leaf in tree_leaves(self.given.get(name)))
            if total > CACHE_BYTES:
                self.given.pop(name, None)


class _Given:
    """A forward that gives copies of one output, since readers may edit theirs."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        return tree_map(_copied, self.output)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0
