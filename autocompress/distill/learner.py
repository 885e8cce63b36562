"""One student while it trains: its copy of the model, its optimizer, its zeros, and how its terms are weighed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autocompress.compressing.fake import fake_quantization
from autocompress.compressing.mask import hold, zero_masks
from autocompress.distill.hidden import HiddenTerms, hidden_terms
from autocompress.distill.lora import additions
from autocompress.distill.online import set_apart
from autocompress.distill.states import States, watching
from autocompress.errors import ModelError
from autocompress.layers import LayerTable
from autocompress.plan import Distill, Plan
from autocompress.tasks.task import Inputs, Task, logits_of

WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: linear up over the first tenth, then linear down to 0."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


@dataclass
class Balance:
    """How terms become one loss.

    Attributes:
        weights: by name of the term.
        normalise: divide each term by its own value at the step where it first came.
        first: these values; a term that began at 0 is not divided.
    """

    weights: Mapping[str, float]
    normalise: bool = False
    first: dict[str, float] = field(default_factory=dict)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """``Σ weight·term``, or ``Σ weight·term / first value of term``."""
        total = torch.zeros(())
        for name, term in terms.items():
            if self.normalise:
                start = self.first.setdefault(name, float(term.detach()))
                term = term / start if start else term
            total = total + self.weights[name] * term
        return total


def balance_of(settings: Distill) -> Balance:
    """Weights 1-λ of the hard loss, λ of the soft one, and β of each further term."""
    weights = {"hard": 1 - settings.soft_weight, "soft": settings.soft_weight}
    if settings.terms:
        names = ("hidden", "cosine", "relations", "normalised")
        weights.update({name: getattr(settings.terms, name) for name in names})
    return Balance(weights, settings.normalise)


@dataclass
class Learner:
    """One student while it trains.

    Attributes:
        model: in training mode.
        settings: of the recovery.
        masks: zeros that are held: name of a weight to its survivors.
        terms, states: further terms and what they look at; None where there are none.
    """

    model: nn.Module
    settings: Distill
    masks: Mapping[str, Tensor]
    terms: HiddenTerms | None = None
    states: States | None = None

    def __post_init__(self) -> None:
        """Make optimizer and schedule for whatever is trainable now; raises `ModelError` where nothing is."""
        self.balance = balance_of(self.settings)
        self.on_policy_balance = Balance({"soft": 1.0}, self.settings.normalise, self.balance.first)
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        if not self.weights:
            raise ModelError(
                f"{type(self.model).__name__} has no weight to train but embeddings, which stay as they are"
            )
        self.weights += list(self.terms.parameters()) if self.terms else []
        rate, steps = self.settings.learning_rate, self.settings.steps
        self.optimizer = torch.optim.AdamW(self.weights, rate, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: learning_rate_share(step, steps))

    def answer(self, inputs: Inputs) -> Tensor:
        """The student's logits, with gradients."""
        return logits_of(self.model(**inputs))

    def learn(self, terms: Mapping[str, Tensor], step: int, *, on_policy: bool = False) -> None:
        """One optimizer step on the weighed terms.

        Raises:
            ModelError: the loss is NaN or infinite; names its value, the step, the settings and the terms.
        """
        loss = (self.on_policy_balance if on_policy else self.balance).total(terms)
        if not torch.isfinite(loss):
            parts = ", ".join(f"{name} {float(term.detach()):.4g}" for name, term in terms.items())
            raise ModelError(
                f"recovery diverged: the loss is {float(loss.detach())} at step {step} of {self.settings}: {parts}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        if self.masks:
            hold(self.model, self.masks)


@contextlib.contextmanager
def enrolled(student: nn.Module, number: int, plan: Plan, task: Task, table: LayerTable) -> Iterator[Learner]:
    """A learner on a copy of the student; on exit its model is a plain one again, with the weights it learned.

    Args:
        student: shaped; not changed.
        number: among its peers; all but number 0 are set apart by a little noise.
        plan: names the settings, the zeros that are held, and the layers that compute with rounded weights.
        task: gives the samples that calibrate rounding.
        table: of the task's source.
    """
    settings = plan.distill
    assert settings is not None
    model = copy.deepcopy(student).train()
    trainable = {name: weight.requires_grad for name, weight in model.named_parameters()}
    masks = zero_masks(model, plan)
    terms = hidden_terms(model, task, table, settings.terms) if settings.terms else None
    if task.student is None:
        freeze_embeddings(model)
    if number:
        set_apart(model, plan.seed + number)
        hold(model, masks)
    with contextlib.ExitStack() as stack:
        if settings.fake_quantize:
            stack.enter_context(fake_quantization(model, plan, table, task.calibration()))
        if settings.lora:
            stack.enter_context(additions(model, settings.lora, masks))
            masks = {}  # weights with zeros take no addition
        states = stack.enter_context(watching(model, terms.listening.student)) if terms else None
        yield Learner(model, settings, masks, terms, states)
    for name, weight in model.named_parameters():
        weight.requires_grad_(trainable[name])


def freeze_embeddings(model: nn.Module) -> None:
    """Embeddings of a shaped model are the dense model's own, and cost the most to train."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)
