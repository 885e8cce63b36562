"""Terms between the hidden states of one student and of the teacher, and the linear map that lies between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.distill.losses import token_mask
from autocompress.distill.states import States, Watched, watching, what_to_watch
from autocompress.distill.terms import (
    cosine_distance,
    dynamic_map,
    hidden_error,
    normalised_error,
    relation_loss,
    static_map,
    taught_layers,
)
from autocompress.layers import LayerTable, Slice
from autocompress.plan import Terms
from autocompress.survey import evaluating, survey
from autocompress.tasks.task import Inputs, Task
from autocompress.weights import matrix_of

#: Weights per hidden dimension that are compared to tell which dimensions a student kept.
COMPARED = 4096


@dataclass(frozen=True)
class Listening:
    """Whom the terms listen to: the student and the teacher."""

    student: Watched
    teacher: Watched


def listen(student: nn.Module, task: Task, table: LayerTable, terms: Terms) -> Listening:
    """Find out which modules the terms need.

    Args:
        student: shaped, with the names of `table`.
        task: its model is the teacher.
        table: of the task's source.
        terms: which of them are wanted.

    Raises:
        ModelError: teacher or student has no blocks or no heads to look at.
    """
    relations = terms.relations > 0
    its_table = table if task.student is None else survey(task.model, task.workload_inputs(1, None))
    teacher = what_to_watch(task.model, its_table, relations, "teacher")
    return Listening(what_to_watch(student, table, relations, "student"), teacher)


class HiddenTerms(nn.Module):
    """The terms of one student.

    The map W ``(hidden_teacher, hidden_student)`` is shared by all blocks. It starts as the identity, or, where hidden
    dimensions were removed, as the identity of those that stay; it is trained with the student and thrown away. The
    term `hidden` always goes through it, `cosine` and `normalised` only where widths differ.

    Args:
        terms: their weights, and the map of blocks.
        listening: whom to compare.
        start: first value of W.
    """

    def __init__(self, terms: Terms, listening: Listening, start: Tensor) -> None:
        super().__init__()
        self.terms = terms
        self.listening = listening
        self.weight = nn.Parameter(start.clone())

    def forward(self, student: States, teacher: States, inputs: Inputs) -> dict[str, Tensor]:
        """Terms with a weight, by their names in `Terms`, from one forward of student and teacher on `inputs`."""
        ours, theirs = self.listening.student, self.listening.teacher
        own = [student.hidden[name] for name in ours.blocks]
        its = [teacher.hidden[name] for name in theirs.blocks]
        mask = token_mask(inputs, its[-1])
        mapped = [nn.functional.linear(states, self.weight) for states in own]
        alike = own if own[-1].shape == its[-1].shape else mapped
        pairs = self._pairs(mapped, its, mask)
        made: dict[str, Tensor] = {}
        if self.terms.hidden:
            made["hidden"] = torch.stack([hidden_error(mapped[s], its[t], mask) for s, t in pairs]).mean()
        if self.terms.normalised:
            made["normalised"] = torch.stack([normalised_error(alike[s], its[t], mask) for s, t in pairs]).mean()
        if self.terms.cosine:
            made["cosine"] = cosine_distance(alike[-1], its[-1], mask)
        if self.terms.relations:
            mine = student.projections(ours.projections)
            made["relations"] = relation_loss(mine, teacher.projections(theirs.projections), mask, ours.causal)
        return made

    def _pairs(self, mapped: list[Tensor], its: list[Tensor], mask: Tensor | None) -> list[tuple[int, int]]:
        """Which student block is compared with which teacher block, as places in the two lists."""
        if self.terms.hidden_map == "static":
            ours = self.listening.student
            return list(enumerate(static_map(ours.places, ours.depth, len(its))))
        taught = taught_layers(len(its))
        with torch.no_grad():
            costs = [[float(hidden_error(states, its[t], mask)) for states in mapped] for t in taught]
        return list(zip(dynamic_map(np.array(costs)), taught, strict=True))


def hidden_terms(student: nn.Module, task: Task, table: LayerTable, terms: Terms) -> HiddenTerms:
    """The terms between a shaped student and the task's model; runs both once on one sample to see their widths.

    Raises:
        ModelError: teacher or student has no blocks or no heads to look at.
    """
    listening = listen(student, task, table, terms)
    inputs, _targets = task.train.batch([0])
    own = _width(student, listening.student, inputs)
    its = _width(task.model, listening.teacher, inputs)
    return HiddenTerms(terms, listening, first_map(student, task, table, (its, own)))


def _width(model: nn.Module, watched: Watched, inputs: Inputs) -> int:
    with evaluating(model), watching(model, watched) as states, torch.no_grad():
        model(**inputs)
    return states.hidden[watched.blocks[-1]].shape[-1]


def first_map(student: nn.Module, task: Task, table: LayerTable, shape: tuple[int, int]) -> Tensor:
    """W ``(hidden_teacher, hidden_student)`` before training: each student dimension goes where it came from."""
    start = torch.zeros(shape)
    kept = None if task.student is not None or shape[0] == shape[1] else kept_dimensions(student, task.model, table)
    if kept is None or len(kept) != shape[1]:
        kept = list(range(min(shape)))
    start[kept, range(len(kept))] = 1.0
    return start


def kept_dimensions(student: nn.Module, dense: nn.Module, table: LayerTable) -> list[int] | None:
    """Which hidden dimensions of the dense model a student still has, ascending; None where that cannot be told.

    Told by weights that removal only cuts, each dimension's nearest in the dense model: features of the embeddings, or
    rows of a first convolution.
    """
    for group in table.groups:
        for item in group.producers if group.kind == "hidden" else ():
            own, its = _per_dimension(student, item), _per_dimension(dense, item)
            if own is None or its is None or own.shape[1] != its.shape[1]:
                continue
            nearest = torch.cdist(own[:, :COMPARED], its[:, :COMPARED]).argmin(dim=1)
            if bool((nearest.diff() > 0).all()):
                return [int(i) for i in nearest]
    return None


def _per_dimension(model: nn.Module, item: Slice) -> Tensor | None:
    """Weights of each hidden dimension ``(hidden, …)`` in an embedding or a layer that writes the stream."""
    module = dict(model.named_modules()).get(item.name)
    if not isinstance(getattr(module, "weight", None), Tensor):
        return None
    assert module is not None
    matrix = matrix_of(module)
    return matrix.T if isinstance(module, nn.Embedding) else matrix
