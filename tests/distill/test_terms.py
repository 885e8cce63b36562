"""Oracles: loops over single tokens and heads in numpy, brute force over all maps, padding that changes nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.distill.terms import (
    cosine_distance,
    dynamic_map,
    hidden_error,
    normalised_error,
    relation_heads,
    relation_loss,
    static_map,
    taught_layers,
)

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
TERMS = (hidden_error, normalised_error, cosine_distance)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(states: Tensor, mask: Tensor) -> list[NDArray[np.float32]]:
    return [states[i, j].numpy() for i, j in mask.nonzero().tolist()]


def test_hidden_error_is_a_loop_over_tokens() -> None:
    student, teacher = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    each = [np.mean((s - t) ** 2) for s, t in zip(tokens(student, MASK), tokens(teacher, MASK), strict=True)]
    assert float(hidden_error(student, teacher, MASK)) == pytest.approx(float(np.mean(each)), rel=1e-5)


def test_normalised_error_divides_by_the_teachers_own_size() -> None:
    student, teacher = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    pairs = list(zip(tokens(student, MASK), tokens(teacher, MASK), strict=True))
    expected = sum(np.sum((s - t) ** 2) for s, t in pairs) / sum(np.sum(t**2) for _, t in pairs)
    assert float(normalised_error(student, teacher, MASK)) == pytest.approx(float(expected), rel=1e-5)
    assert float(normalised_error(torch.zeros(2, 4, 6), teacher, MASK)) == pytest.approx(1.0)
    assert float(normalised_error(7 * student, 7 * teacher, MASK)) == pytest.approx(float(expected), rel=1e-5)


def test_cosine_distance_is_a_loop_over_tokens() -> None:
    student, teacher = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    pairs = zip(tokens(student, MASK), tokens(teacher, MASK), strict=True)
    each = [1 - s @ t / np.linalg.norm(s) / np.linalg.norm(t) for s, t in pairs]
    assert float(cosine_distance(student, teacher, MASK)) == pytest.approx(float(np.mean(each)), rel=1e-5)
    assert float(cosine_distance(3 * teacher, teacher, None)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_distance(-teacher, teacher, None)) == pytest.approx(2)


@pytest.mark.parametrize("term", TERMS)
def test_no_mask_counts_every_token(term: object) -> None:
    student, teacher = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    everything = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(term(student, teacher, None), term(student, teacher, everything))


@pytest.mark.parametrize("term", TERMS)
def test_padding_changes_nothing_in_terms_per_token(term: object) -> None:
    student, teacher = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    longer = [torch.cat([states, 50 * drawn(2, 3, 6, seed=2)], dim=1) for states in (student, teacher)]
    more = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(term(*longer, more), term(student, teacher, MASK))


def slow_relations(vectors: NDArray[np.float64], heads: int, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of one sample ``(t, width)``: probabilities ``(heads, t, t)``; not seen is 0."""
    t, width = vectors.shape
    each, found = width // heads, np.zeros((heads, t, t))
    for h, i in itertools.product(range(heads), range(t)):
        part = vectors[:, h * each : (h + 1) * each]
        powers = np.array([math.exp(part[i] @ part[j] / math.sqrt(each)) if seen[i, j] else 0.0 for j in range(t)])
        found[h, i] = powers / powers.sum()
    return found


def slow_relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, causal: bool, heads: int) -> float:
    """Mean over tokens and heads of KL(teacher ‖ student), by loops, of one of queries, keys and values."""
    losses = []
    for i in range(len(mask)):
        real = mask[i].numpy()
        t = len(real)
        seen = np.array([[real[b] and (b <= a or not causal) for b in range(t)] for a in range(t)])
        mine = slow_relations(student[i].double().numpy(), heads, seen)
        its = slow_relations(teacher[i].double().numpy(), heads, seen)
        for h, a in itertools.product(range(heads), np.flatnonzero(real)):
            pairs = zip(its[h, a], mine[h, a], strict=True)
            losses.append(sum(p * math.log(p / q) for p, q in pairs if p > 0))
    return float(np.mean(losses))


@pytest.mark.parametrize("causal", [False, True])
def test_relation_loss_is_loops_over_heads_and_tokens(causal: bool) -> None:
    """The student has widths 6, 6, 4 and the teacher 12, 12, 8: heads that both can be cut into are 6, 6, 4."""
    students = [drawn(2, 4, width, seed=i) for i, width in enumerate((6, 6, 4))]
    teachers = [drawn(2, 4, width, seed=9 + i) for i, width in enumerate((12, 12, 8))]
    each = [
        slow_relation_loss(s, t, MASK, causal, heads) for s, t, heads in zip(students, teachers, (6, 6, 4), strict=True)
    ]
    assert float(relation_loss(students, teachers, MASK, causal)) == pytest.approx(float(np.mean(each)), rel=1e-4)


def test_relations_of_equal_vectors_are_equal_whatever_their_order_of_heads() -> None:
    teachers = [drawn(2, 4, 8, seed=i) for i in range(3)]
    assert float(relation_loss(teachers, teachers, MASK)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing_in_relations(causal: bool) -> None:
    students, teachers = ([drawn(2, 4, 8, seed=s + i) for i in range(3)] for s in (0, 5))
    longer = [
        [torch.cat([vectors, 50 * drawn(2, 3, 8, seed=20)], dim=1) for vectors in side] for side in (students, teachers)
    ]
    more = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        relation_loss(*longer, more, causal), relation_loss(students, teachers, MASK, causal), rtol=1e-4, atol=1e-6
    )


def test_gradients_of_relations_stay_finite_beside_padding() -> None:
    students = [drawn(2, 4, 8, seed=i).requires_grad_() for i in range(3)]
    relation_loss(students, [drawn(2, 4, 8, seed=5 + i) for i in range(3)], MASK, causal=True).backward()
    assert all(torch.isfinite(s.grad).all() and s.grad.abs().sum() > 0 for s in students)
    assert not any(s.grad[~MASK].any() for s in students)


@pytest.mark.parametrize(
    ("student", "teacher", "heads"), [(384, 384, 12), (64, 384, 8), (288, 384, 12), (7, 384, 1), (10, 384, 2)]
)
def test_relation_heads_divide_both_widths(student: int, teacher: int, heads: int) -> None:
    assert relation_heads(student, teacher) == heads


def test_a_shaped_student_learns_from_its_own_blocks() -> None:
    assert static_map([1, 2, 5], 6, 6) == (1, 2, 5)


@pytest.mark.parametrize(
    ("own", "teachers", "expected"),
    [(6, 12, (1, 3, 5, 7, 9, 11)), (4, 12, (2, 5, 8, 11)), (1, 2, (1,)), (5, 12, (2, 4, 7, 9, 11)), (3, 2, (0, 1, 1))],
)
def test_another_network_learns_evenly_by_depth(own: int, teachers: int, expected: tuple[int, ...]) -> None:
    assert static_map(range(own), own, teachers) == expected
    assert static_map([own - 1], own, teachers) == expected[-1:], "a block that is removed moves no other"


@pytest.mark.parametrize(("count", "expected"), [(1, (0,)), (2, (1,)), (3, (1, 2)), (6, (1, 3, 5)), (7, (1, 3, 5, 6))])
def test_every_second_teacher_block_and_the_last_are_taught(count: int, expected: tuple[int, ...]) -> None:
    assert taught_layers(count) == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_dynamic_map_is_the_best_of_all_maps_that_keep_the_order(seed: int) -> None:
    draw = np.random.default_rng(seed)
    costs = draw.random((draw.integers(1, 5), draw.integers(1, 6)))
    rows, columns = costs.shape
    legal = [m for m in itertools.product(range(columns), repeat=rows) if list(m) == sorted(m)]
    best = min(sum(costs[i, c] for i, c in enumerate(m)) for m in legal)
    found = dynamic_map(costs)
    assert found in legal
    assert sum(costs[i, c] for i, c in enumerate(found)) == pytest.approx(best)


def test_the_dynamic_map_takes_the_nearest_block_where_order_allows() -> None:
    costs = np.array([[0.0, 9, 9, 9], [9, 9, 0, 9], [9, 9, 9, 0]])
    assert dynamic_map(costs) == (0, 2, 3)
