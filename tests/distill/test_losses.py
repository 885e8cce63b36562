"""Oracles: closed forms on hand values, loops over single tokens, limits of λ, T and β, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from autocompress.distill import Prediction, distillation_loss, soft_loss
from autocompress.distill.losses import generalised_jsd, kl, masked_mean, outcomes, settled_soft_loss, token_mask
from autocompress.errors import ModelError
from autocompress.plan import Distill


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def hand_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def hand_loss(student: list[float], teacher: list[float], temperature: float) -> float:
    return temperature**2 * hand_kl(softmax(teacher, temperature), softmax(student, temperature))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_loss_is_the_closed_form(temperature: float) -> None:
    found = soft_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0]]), temperature)
    assert float(found) == pytest.approx(hand_loss([1, 0, -1], [0.5, 2, 0], temperature), rel=1e-5)


def test_soft_loss_is_the_mean_over_samples_and_not_over_classes() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    each = [hand_loss(s, t, 2.0) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert float(soft_loss(student, teacher, 2.0)) == pytest.approx(sum(each) / 2, rel=1e-5)


def test_soft_loss_per_token_is_the_mean_over_the_tokens_that_are_no_padding() -> None:
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    each = [hand_loss(student[i, j].tolist(), teacher[i, j].tolist(), 2.0) for i, j in mask.nonzero().tolist()]
    assert float(soft_loss(student, teacher, 2.0, mask)) == pytest.approx(sum(each) / 3, rel=1e-4)


def test_padding_changes_nothing() -> None:
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    padded = [torch.cat([logits, 9 * drawn(2, 5, 4, seed=2)], dim=1) for logits in (student, teacher)]
    more = torch.cat([mask, torch.zeros(2, 5, dtype=torch.bool)], dim=1)
    for beta in (0.0, 0.3, 1.0):
        torch.testing.assert_close(soft_loss(*padded, 2.0, more, beta), soft_loss(student, teacher, 2.0, mask, beta))


def test_soft_loss_of_equal_logits_is_zero_whatever_is_added() -> None:
    logits = drawn(4, 3)
    assert float(soft_loss(logits + 5, logits, 3.0)) == pytest.approx(0.0, abs=1e-5)


def gradient(temperature: float, beta: float = 0.0) -> float:
    student = torch.tensor([[0.02, -0.01, 0.0, 0.01]], requires_grad=True)
    soft_loss(student, torch.tensor([[-0.01, 0.03, 0.0, -0.02]]), temperature, None, beta).backward()
    return float(student.grad.norm())


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [2.0, 5.0, 20.0])
def test_the_gradients_size_does_not_depend_on_temperature(temperature: float, beta: float) -> None:
    """For small logits it is (s - t)/classes, at every T (Hinton et al. 2015, §2.1): T² is there."""
    assert gradient(temperature, beta) == pytest.approx(gradient(1.0, beta), rel=0.02)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_the_papers_form(beta: float) -> None:
    p, q = softmax([1.0, 0.0, -1.0], 1.0), softmax([0.5, 2.0, 0.0], 1.0)
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    expected = beta * hand_kl(p, m) + (1 - beta) * hand_kl(q, m)
    found = generalised_jsd(torch.tensor(p).log(), torch.tensor(q).log(), beta)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_jsd_at_one_half_is_symmetric_and_at_most_log_2() -> None:
    p, q = ((5 * drawn(25, 6, seed=seed).double()).log_softmax(-1) for seed in (1, 2))
    there, back = generalised_jsd(p, q, 0.5), generalised_jsd(q, p, 0.5)
    torch.testing.assert_close(there, back)
    assert bool((there <= math.log(2) + 1e-9).all())


def test_jsd_ends_in_the_two_kullback_leibler_divergences() -> None:
    log_p, log_q = (drawn(5, 6, seed=seed).double().log_softmax(-1) for seed in (1, 2))
    torch.testing.assert_close(generalised_jsd(log_p, log_q, 0.0), kl(log_p, log_q))
    torch.testing.assert_close(generalised_jsd(log_p, log_q, 1.0), kl(log_q, log_p))
    tiny = 1e-6
    torch.testing.assert_close(generalised_jsd(log_p, log_q, tiny) / tiny, kl(log_p, log_q), rtol=1e-3, atol=0)
    torch.testing.assert_close(generalised_jsd(log_p, log_q, 1 - tiny) / tiny, kl(log_q, log_p), rtol=1e-3, atol=0)


def test_the_settings_choose_the_divergence() -> None:
    student, teacher = drawn(4, 3), drawn(4, 3, seed=1)
    found = settled_soft_loss(student, teacher, Distill(divergence="jsd", beta=0.3, temperature=3.0))
    torch.testing.assert_close(found, soft_loss(student, teacher, 3.0, None, 0.3))
    plain = settled_soft_loss(student, teacher, Distill(temperature=3.0))
    torch.testing.assert_close(plain, soft_loss(student, teacher, 3.0))


def test_outcomes_keep_the_named_probabilities_and_the_mass_of_the_rest() -> None:
    logits, classes = drawn(2, 7), torch.tensor([[6, 0, 3], [1, 2, 4]])
    found, whole = outcomes(logits, classes).softmax(-1), logits.softmax(-1)
    for i, names in enumerate(classes.tolist()):
        assert found[i, :3].tolist() == pytest.approx(whole[i, names].tolist(), rel=1e-5)
        assert float(found[i, 3]) == pytest.approx(1 - float(whole[i, names].sum()), rel=1e-4)
    assert outcomes(logits, None) is logits


def test_a_cut_prediction_is_compared_on_its_outcomes() -> None:
    """Slow twin: add up the probabilities of what is not named, by hand."""
    student, teacher, classes = drawn(1, 6), drawn(1, 6, seed=1), torch.tensor([[4, 2]])

    def merged(logits: Tensor) -> list[float]:
        chances = logits[0].softmax(-1).tolist()
        return [chances[4], chances[2], sum(chances[i] for i in (0, 1, 3, 5))]

    found = soft_loss(student, Prediction(outcomes(teacher, classes), classes), 1.0)
    assert float(found) == pytest.approx(hand_kl(merged(teacher), merged(student)), rel=1e-4)
    assert float(soft_loss(teacher, Prediction(outcomes(teacher, classes), classes), 3.0)) == pytest.approx(0, abs=1e-6)


def test_different_classes_are_told_with_both_numbers() -> None:
    with pytest.raises(ModelError, match="student has 3 classes, but its teacher has 5"):
        soft_loss(drawn(2, 3), drawn(2, 5), 1.0)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_two_terms_are_mixed_by_lambda(weight: float) -> None:
    student, teacher, targets = drawn(4, 3), drawn(4, 3, seed=1), torch.tensor([0, 2, 1, 1])
    settings = Distill(soft_weight=weight, temperature=3.0)
    hard = nn.functional.cross_entropy(student, targets)
    expected = (1 - weight) * hard + weight * soft_loss(student, teacher, 3.0)
    found = distillation_loss(student, teacher, targets, settings, nn.functional.cross_entropy)
    torch.testing.assert_close(found, expected)


def test_an_unweighted_term_is_not_computed() -> None:
    def never(_student: Tensor, _targets: Tensor) -> Tensor:
        raise AssertionError("the hard loss was called")

    logits, nan = drawn(2, 3), torch.full((2, 3), float("nan"))
    distillation_loss(logits, logits, torch.tensor([0, 1]), Distill(soft_weight=1.0), never)
    loss = distillation_loss(logits, nan, torch.tensor([0, 1]), Distill(soft_weight=0.0), nn.functional.cross_entropy)
    assert torch.isfinite(loss)


def test_token_mask_is_the_attention_mask_of_token_level_values_only() -> None:
    inputs = {"attention_mask": torch.tensor([[1, 0], [1, 1]])}
    assert token_mask(inputs, drawn(2, 2, 5)).tolist() == [[True, False], [True, True]]
    assert token_mask(inputs, drawn(2, 5)) is None
    assert token_mask(inputs, drawn(2, 3, 5)) is None
    assert token_mask({}, drawn(2, 2, 5)) is None


def test_masked_mean_is_a_loop_over_the_tokens() -> None:
    values, mask = drawn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    kept = [float(values[i, j].mean()) for i in range(2) for j in range(3) if mask[i, j]]
    assert float(masked_mean(values, mask)) == pytest.approx(sum(kept) / len(kept), rel=1e-5)
    torch.testing.assert_close(masked_mean(values, None), values.mean())
