"""What a change of structure, rank or bits does to the predictions by itself: KL(dense ‖ changed), in nats.

Any option of a plan can be asked for: the changed model is assembled from the bank, and what runs before its first
change answers from the dense pass. For options that only quantize, `sensitivity` is the faster way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from autocompress.compressing.bank import Bank
from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.jobs import VALUE
from autocompress.compressing.perturbation import BATCH, real_places
from autocompress.compressing.prefix import Prefix
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.sensitivity import Say, summed_kl
from autocompress.compressing.shape import shape
from autocompress.compressing.store import Store
from autocompress.plan import Plan, effective_layers
from autocompress.survey import evaluating
from autocompress.tasks.task import Examples, Inputs, logits_of


def losses(
    bank: Bank,
    options: Iterable[Plan],
    *,
    samples: int = 256,
    limit_s: float = math.inf,
    say: Say | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Plan, float]:
    """Mean KL(dense ‖ model with one option) over training samples, or tokens that are no padding, in nats.

    Kept in the bank's folder one by one: the same call goes on where it was stopped.

    Args:
        bank: gives the dense model, the samples, the weights of every option, and the store.
        options: plans without recovery, the most wanted first; the empty plan costs nothing.
        samples: training samples that predictions are compared on.
        limit_s: seconds of `clock` after which no further option is begun; at least one is.
        say: is told how far it is.
        clock: gives seconds.
    """
    wanted = list(dict.fromkeys(options))
    dense = _Dense(bank, bank.passes.task.calibration(samples))
    found, begun = {Plan(): 0.0}, clock()
    for number, option in enumerate(wanted, start=1):
        key = Store.key("loss", {"option": option.to_json(), "samples": samples}, {"model": bank.passes.origin})
        entry = bank.store.get(key)
        if option not in found and entry is None:
            start = time.perf_counter()
            if clock() - begun > limit_s and len(found) > 1:
                continue
            value = dense.divergence(option)
            entry = {VALUE: torch.tensor(value, dtype=torch.float64)}
            bank.store.put(key, entry, time.perf_counter() - start)
            if say is not None:
                say(f"what single choices lose: {number} of {len(wanted)}")
        if entry is not None:
            found[option] = float(entry[VALUE])
    return {option: found[option] for option in wanted if option in found}


@dataclass(frozen=True)
class _Seen:
    """One batch as the dense model saw it."""

    inputs: Inputs
    prefix: Prefix
    logits: Tensor


class _Dense:
    """The dense model's predictions, and what its blocks gave on the way to them."""

    def __init__(self, bank: Bank, examples: Examples) -> None:
        self.bank = bank
        self.examples = examples
        named = dict(bank.model.named_modules())
        self.blocks = [name for name in bank.table.blocks if name in named]

    @cached_property
    def seen(self) -> list[_Seen]:
        model, seen = self.bank.model, []
        with evaluating(model), torch.inference_mode():
            for _rows, inputs, _targets in self.examples.batches(BATCH):
                prefix = Prefix(model, self.blocks)
                seen.append(_Seen(inputs, prefix, prefix.record(inputs)))
        return seen

    def divergence(self, option: Plan) -> float:
        """Of the model with one option, assembled without training."""
        model, total, count = self._assembled(option), 0.0, 0
        touched = self._touched(option)
        with evaluating(model), torch.inference_mode():
            for batch in self.seen:
                with batch.prefix.replaying(batch.prefix.first(touched), model):
                    logits = logits_of(model(**batch.inputs))
                real = real_places(batch.inputs, batch.logits)
                total += summed_kl(batch.logits[real], logits[real])
                count += int(real.sum())
        return total / count

    def _assembled(self, option: Plan) -> nn.Module:
        bank, calibration = self.bank, self.bank.passes.examples
        model = shape(bank.model, option, bank.table, bank)
        if option.groups or any(lp.factorize or lp.mask for lp in option.layers.values()):
            refresh_batchnorm(model, calibration)
        if any(lp.quantize for lp in option.layers.values()):
            made = quantize(model, option, bank.table, calibration)
            model = simulate(made.model, made.codes)
        return model.eval()

    def _touched(self, option: Plan) -> list[str]:
        """Blocks that an option changes; all of them where it changes something outside the blocks, too."""
        before = {e.layer.name: e for e in effective_layers(Plan(), self.bank.table)}
        changed = [e.layer.name for e in effective_layers(option, self.bank.table) if e != before[e.layer.name]]
        changed += [name for name, lp in option.layers.items() if lp.mask]
        homes = {name: next((b for b in self.blocks if name.startswith(b + ".")), "") for name in changed}
        return self.blocks if "" in homes.values() or option.mask or not homes else sorted(set(homes.values()))
