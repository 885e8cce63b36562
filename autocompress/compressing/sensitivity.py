"""What rounding costs: KL(dense ‖ model in which only these layers are rounded), in nats, on calibration samples.

Measured: the layers of a dense copy are swapped for their rounded twins, and what runs before them answers from the
dense pass, so that a swap costs the rest of the model only. Where there is no time for all, predicted from the change
of the layers' outputs along the gradient of the prediction: one backward pass for all, calibrated on those measured.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from autocompress.compressing.bank import Bank
from autocompress.compressing.jobs import VALUE
from autocompress.compressing.perturbation import BATCH, Twins, perturbations, real_places
from autocompress.compressing.prefix import Prefix
from autocompress.compressing.quantize import Quantized, quantize, simulate
from autocompress.compressing.store import Store
from autocompress.plan import Plan, Quantize
from autocompress.survey import evaluating
from autocompress.tasks.task import Examples, logits_of
from autocompress.weights import linearized, untie

#: Options that are worked on together; what is known is written down after each part.
PART = 16

#: Probabilities that are compared at once.
KL_NUMBERS = 1 << 22

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sensitivity:
    """What one option does to the model's predictions.

    Attributes:
        kl: mean KL(dense ‖ model with this option alone) in nats, over samples, or tokens that are no padding.
        measured: whether it was, or was predicted from output changes.
    """

    kl: float
    measured: bool


def sensitivities(
    bank: Bank,
    options: Iterable[Plan],
    *,
    samples: int = 256,
    limit_s: float = math.inf,
    say: Say | None = None,
) -> dict[Plan, Sensitivity]:
    """The error of each option by itself in the dense model; an option may be a whole candidate.

    Kept in the bank's folder, part by part: the same call goes on where it was stopped.

    Args:
        bank: gives the dense model, the samples that calibrate, and the store.
        options: plans that only quantize; the empty plan costs nothing.
        samples: training samples that predictions are compared on.
        limit_s: seconds that measuring may take, as estimated from one dense pass. Beyond, evenly spread options of
            each precision are measured and the others predicted; at least one of each precision is measured.
        say: is told how far it is.
    """
    wanted = [option for option in dict.fromkeys(options) if option != Plan()]
    work = _Work(bank, bank.passes.task.calibration(samples), say)
    measured = work.known(wanted, "sensitivity")
    left = [option for option in wanted if option not in measured]
    chosen = left
    if left and limit_s < math.inf:
        chosen = _affordable(left, work.costs(left), limit_s)
    compare = partial(divergences, dense=work.model, kept=work.modules)
    measured |= work.each_part(chosen, "sensitivity", compare)
    result = {option: Sensitivity(kl, True) for option, kl in measured.items()}
    if len(measured) < len(wanted):
        changes = work.known(wanted, "perturbation")
        changes |= work.each_part([o for o in wanted if o not in changes], "perturbation", perturbations)
        result |= _predicted({option: changes[option] for option in wanted}, measured)
    return {Plan(): Sensitivity(0.0, True), **result}


class _Work:
    """A float copy of the dense model, and what was computed with it."""

    def __init__(self, bank: Bank, examples: Examples, say: Say | None) -> None:
        self.bank = bank
        self.examples = examples
        self.say = say
        self.model = linearized(copy.deepcopy(bank.model)).eval().requires_grad_(True)
        untie(self.model, [layer.name for layer in bank.table.layers if layer.allows("quantize")])
        self.modules = (*bank.table.blocks, *(layer.name for layer in bank.table.layers))

    def known(self, options: Iterable[Plan], kind: str) -> dict[Plan, float]:
        """Those that the store has."""
        entries = {option: self.bank.store.get(self._key(option, kind)) for option in options}
        return {option: float(entry[VALUE]) for option, entry in entries.items() if entry is not None}

    def each_part(
        self,
        options: Sequence[Plan],
        kind: str,
        compute: Callable[[nn.Module, Sequence[Twins], Examples], list[float]],
    ) -> dict[Plan, float]:
        """Compute the values of options that share no layer together, and keep them."""
        values: dict[Plan, float] = {}
        for part in _parts(options):
            start = time.perf_counter()
            together = Plan(layers={name: lp for option in part for name, lp in option.layers.items()})
            made = quantize(self.model, together, self.bank.table, self.bank.passes.examples)
            twins = [{name: _twin(made, name) for name in option.layers} for option in part]
            found = compute(made.model, twins, self.examples)
            seconds = (time.perf_counter() - start) / len(part)
            for option, value in zip(part, found, strict=True):
                self.bank.store.put(self._key(option, kind), {VALUE: torch.tensor(value, dtype=torch.float64)}, seconds)
                values[option] = value
            if self.say is not None and len(options) > 1:
                self.say(f"{kind}: {len(values)} of {len(options)} options")
        return values

    def costs(self, options: Sequence[Plan]) -> list[float]:
        """Estimated seconds to measure each option: the share of a dense pass that follows its first layer."""
        rows = self.examples.by_length
        inputs, _targets = self.examples.batch(rows[len(rows) // 2 :][:BATCH])
        prefix = Prefix(self.model, self.modules)
        with evaluating(self.model), torch.inference_mode():
            self.model(**inputs)  # the first call of all is slower
            start = time.perf_counter()
            prefix.record(inputs)
            seconds = (time.perf_counter() - start) * math.ceil(len(rows) / BATCH)
        return [seconds * (1 - prefix.first(option.layers) / max(prefix.clock, 1)) for option in options]

    def _key(self, option: Plan, kind: str) -> str:
        settings = {"option": option.to_json(), "samples": len(self.examples)}
        return Store.key(kind, settings, {"model": self.bank.passes.origin})


def _parts(options: Iterable[Plan]) -> list[list[Plan]]:
    """Options in parts of which no two touch one layer; what changes float weights around its layer stands alone."""
    parts: list[tuple[list[Plan], set[str]]] = []
    alone: list[list[Plan]] = []
    for option in options:
        if any(q.smooth is not None or q.bias_correction for q in _settings(option)):
            alone.append([option])
            continue
        for part, taken in parts:
            if len(part) < PART and taken.isdisjoint(option.layers):
                break
        else:
            part, taken = [], set()
            parts.append((part, taken))
        part.append(option)
        taken.update(option.layers)
    return [*(part for part, _taken in parts), *alone]


def _settings(option: Plan) -> list[Quantize]:
    return [lp.quantize for lp in option.layers.values() if lp.quantize]


def _label(option: Plan) -> str:
    """What options must share for their errors to be predicted alike."""
    said = {f"{settings.precision} {settings.bits}" for settings in _settings(option)}
    return ", ".join(sorted(said))


def _affordable(options: Sequence[Plan], costs: Sequence[float], limit_s: float) -> list[Plan]:
    """All options, or so many of each label, evenly spread, that they take about the limit."""
    share = limit_s / max(sum(costs), 1e-12)
    if share >= 1:
        return list(options)
    chosen: list[Plan] = []
    for label in dict.fromkeys(map(_label, options)):
        alike = [option for option in options if _label(option) == label]
        count = max(1, int(share * len(alike)))
        chosen += [alike[(2 * i + 1) * len(alike) // (2 * count)] for i in range(count)]
    return chosen


def _predicted(changes: Mapping[Plan, float], measured: Mapping[Plan, float]) -> dict[Plan, Sensitivity]:
    """Options that were not measured, by their output changes times the measured KL per change of their like."""
    ratios: dict[str, list[float]] = {}
    for option, kl in measured.items():
        if kl > 0 and changes[option] > 0:
            ratios.setdefault(_label(option), []).append(math.log(kl / changes[option]))
    everything = [ratio for found in ratios.values() for ratio in found]
    result = {}
    for option, change in changes.items():
        if option not in measured:
            found = ratios.get(_label(option), everything) or [0.0]
            result[option] = Sensitivity(change * math.exp(sum(found) / len(found)), False)
    return result


@contextlib.contextmanager
def _swapped(model: nn.Module, twins: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, the twins stand in the places of some modules."""
    before = {name: model.get_submodule(name) for name in twins}
    try:
        for name, twin in twins.items():
            model.set_submodule(name, twin)
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)


def _twin(made: Quantized, name: str) -> nn.Module:
    """One layer as its integers compute."""
    return simulate(made.model.get_submodule(name), {"": made.codes[name]})


def divergences(
    model: nn.Module, options: Sequence[Twins], examples: Examples, dense: nn.Module, kept: Sequence[str]
) -> list[float]:
    """Mean KL(dense ‖ model with one option's layers swapped) of each option, in nats.

    Args:
        model: computes what the dense model does, but for biases that belong to an option; itself again afterwards.
        options: the layers that each swaps, by name.
        examples: samples that predictions are compared on.
        dense: the reference.
        kept: modules, those of `options` among them, whose outputs are not computed again where nothing changed.
    """
    prefix = Prefix(model, kept)
    totals, count = [0.0] * len(options), 0
    with evaluating(model), torch.inference_mode():
        for _rows, inputs, _targets in examples.batches(BATCH):
            logits = prefix.record(inputs)
            if dense is not model:
                logits = logits_of(dense(**inputs))
            real = real_places(inputs, logits)
            wanted = logits[real]
            count += len(wanted)
            for number, swap in enumerate(options):
                with _swapped(model, swap), prefix.replaying(prefix.first(swap)):
                    rounded = logits_of(model(**inputs))[real]
                totals[number] += summed_kl(wanted, rounded)
    return [total / count for total in totals]


def summed_kl(dense: Tensor, rounded: Tensor) -> float:
    """Sum of KL(dense ‖ rounded) over rows of logits ``(n, classes)``, in double precision and never below 0."""
    total = 0.0
    rows = max(1, KL_NUMBERS // dense.shape[-1])
    for pair in zip(torch.split(dense, rows), torch.split(rounded, rows), strict=True):
        log_p, log_q = (logits.double().log_softmax(dim=-1) for logits in pair)
        total += float(nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
    return max(0.0, total)
