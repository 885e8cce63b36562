"""Oracles: the tail of singular values (Eckart–Young), torch's SVD, the layer's real outputs, the weight itself."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.calibrate import gram_matrices
from autocompress.compressing.factorize import (
    break_even_rank,
    decompose,
    factorize,
    factors,
    factors_at,
    rank_errors,
    replace_by_factors,
    zero_factors,
)
from autocompress.compressing.prune import damped
from autocompress.export.export import float_graph
from autocompress.plan import Factorize
from autocompress.plan.check import largest_rank
from autocompress.tasks.task import Examples
from tests.tiny import cnn, run, spread, task_of


def root_error(weight: Tensor, product: Tensor, gram: Tensor) -> float:
    """Root mean square output error for inputs of the damped second moment."""
    change = weight - product
    return float(torch.trace(change @ damped(gram) @ change.T).sqrt())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_output_error_is_the_tail_of_singular_values(rank: int) -> None:
    _inputs, gram = spread(300, 10)
    weight = torch.randn(8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out_factor, in_factor = factorize(weight, gram, rank)
    values = torch.linalg.svdvals(weight @ torch.linalg.cholesky(damped(gram)))
    tail = float(values[rank:].pow(2).sum().sqrt())
    assert root_error(weight, out_factor @ in_factor, gram) == pytest.approx(tail, rel=1e-8)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (9, 9)], ids=["wide", "tall", "square"])
def test_full_rank_is_the_weight(shape: tuple[int, int]) -> None:
    _inputs, gram = spread(300, shape[1])
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out_factor, in_factor = factorize(weight, gram, min(shape))
    assert out_factor.shape == (shape[0], min(shape))
    assert in_factor.shape == (min(shape), shape[1])
    torch.testing.assert_close(out_factor @ in_factor, weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_it_beats_plain_svd_on_the_inputs_it_was_made_for(seed: int) -> None:
    inputs, gram = spread(300, 16, seed)
    weight = torch.randn(12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    out_factor, in_factor = factorize(weight, gram, 4)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    plain = (left[:, :4] * values[:4]) @ right[:4]
    ours = torch.linalg.norm(inputs @ (weight - out_factor @ in_factor).T)
    assert ours < torch.linalg.norm(inputs @ (weight - plain).T)


def test_a_weight_of_low_rank_survives_its_own_rank() -> None:
    _inputs, gram = spread(300, 10)
    weight = torch.randn(8, 3) @ torch.randn(3, 10)
    out_factor, in_factor = factorize(weight, gram, 3)
    torch.testing.assert_close(out_factor @ in_factor, weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_that_the_weight_does_not_have_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank must be 1 to 8, but got {rank}"):
        factorize(torch.randn(8, 10), torch.eye(10), rank)


@pytest.mark.parametrize(
    ("shape", "split"),
    [
        ((32, 32), "channel"),
        ((64, 32), "channel"),
        ((33, 47), "channel"),
        ((192, 1, 2, 2), "channel"),
        ((16, 8, 3, 3), "channel"),
        ((16, 8, 3, 3), "spatial"),
        ((8, 4, 1, 7), "spatial"),
    ],
    ids=str,
)
def test_break_even_rank_is_the_last_that_saves(shape: tuple[int, ...], split: str) -> None:
    rank = break_even_rank(shape, split)

    def size(rank: int) -> int:
        return sum(f.numel() for f in zero_factors(torch.zeros(shape), Factorize(rank, split=split)))

    whole = int(np.prod(shape))
    assert size(rank) < whole
    assert size(rank + 1) >= whole or rank == largest_rank(shape, split)


def test_the_patches_of_a_vision_transformer_take_ranks_up_to_3() -> None:
    assert break_even_rank((192, 1, 2, 2)) == 3


def smooth(count: int, channels: int, side: int, seed: int) -> Tensor:
    """Images whose neighbouring pixels and channels are alike, with a mean; ``(count, channels, side, side)``."""
    draw = torch.Generator().manual_seed(seed)
    fine = torch.randn(count, channels, side + 4, side + 4, generator=draw)
    mixed = torch.einsum("nchw,cd->ndhw", fine, torch.randn(channels, channels, generator=draw))
    return nn.functional.avg_pool2d(mixed, 5, stride=1) + 0.5


def convolution(**changes: object) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, **changes})
    return made.eval()


CONVOLUTIONS = {
    "3x3": {},
    "stride": {"stride": (2, 1), "padding": (0, 2)},
    "dilation": {"dilation": (1, 2), "bias": False},
    "1x1": {"kernel_size": 1, "padding": 0},
    "oblong": {"kernel_size": (3, 5), "padding": "same"},
    "valid": {"kernel_size": (3, 2), "padding": "valid"},
    "reflect": {"padding_mode": "reflect", "padding": (1, 2), "kernel_size": (3, 5)},
    "circular": {"padding_mode": "circular"},
}


@pytest.fixture(params=list(CONVOLUTIONS))
def conv(request: pytest.FixtureRequest) -> nn.Conv2d:
    return convolution(**CONVOLUTIONS[request.param])


def gram_of(module: nn.Module, inputs: Tensor) -> Tensor:
    examples = Examples({"input": inputs}, torch.zeros(len(inputs), dtype=torch.int64))
    return gram_matrices(nn.Sequential(module), ["0"], examples)["0"]


def replaced(module: nn.Module, gram: Tensor, settings: Factorize) -> nn.Module:
    return replace_by_factors(module, factors(module.weight, gram, settings), settings)


def settings_at(module: nn.Conv2d, rank: int | None, method: str, split: str) -> Factorize:
    return Factorize(rank or largest_rank(tuple(module.weight.shape), split), method, split)


@pytest.mark.parametrize("split", ["channel", "spatial"])
@pytest.mark.parametrize("method", ["activation-aware", "plain"])
def test_a_convolution_at_full_rank_is_itself(conv: nn.Conv2d, method: str, split: str) -> None:
    inputs = smooth(4, 4, 9, 1)
    twin = replaced(conv, gram_of(conv, inputs), settings_at(conv, None, method, split))
    with torch.inference_mode():
        torch.testing.assert_close(twin(inputs), conv(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", ["channel", "spatial"])
@pytest.mark.parametrize("method", ["activation-aware", "plain"])
def test_errors_are_the_true_output_errors_at_every_rank(conv: nn.Conv2d, method: str, split: str) -> None:
    """The convolution without its bias, run on the images that made the second moment, in float64."""
    inputs = smooth(4, 4, 9, 1).double()
    exact = nn.Conv2d(
        4, 6, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=False, padding_mode=conv.padding_mode
    ).double()
    exact.weight = nn.Parameter(conv.weight.detach().double())
    with torch.inference_mode():
        dense = exact(inputs)
    patches = nn.functional.unfold(
        nn.functional.pad(
            inputs,
            conv._reversed_padding_repeated_twice,
            "constant" if conv.padding_mode == "zeros" else conv.padding_mode,
        ),
        conv.kernel_size,
        conv.dilation,
        stride=conv.stride,
    )
    rows = patches.permute(0, 2, 1).reshape(-1, patches.shape[1])
    gram = rows.T @ rows / len(rows)
    made = decompose(exact.weight, gram, settings_at(conv, 1, method, split))
    assert made.errors[0] == 1
    assert len(made.errors) == largest_rank(tuple(conv.weight.shape), split) + 1
    for rank in range(1, len(made.errors)):
        settings = settings_at(conv, rank, method, split)
        twin = replace_by_factors(exact, factors_at(made, rank, torch.float64), settings)
        with torch.inference_mode():
            error = float((twin(inputs) - dense).norm() / dense.norm())
        assert float(made.errors[rank]) == pytest.approx(error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("method", ["activation-aware", "plain"])
def test_errors_of_a_linear_are_those_on_its_inputs(method: str) -> None:
    inputs, gram = spread(300, 10)
    weight = torch.randn(8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = rank_errors(weight, gram, Factorize(1, method))
    for rank in range(1, 9):
        out_factor, in_factor = factors(weight, gram, Factorize(rank, method))
        change = inputs @ (weight - out_factor @ in_factor).T
        true = float(change.norm() / (inputs @ weight.T).norm())
        assert float(errors[rank]) == pytest.approx(true, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("split", ["channel", "spatial"])
@pytest.mark.parametrize("seed", range(4))
def test_knowing_the_inputs_beats_plain_svd_on_convolutions(split: str, seed: int) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    torch.nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(seed))
    gram = gram_of(conv, smooth(8, 4, 12, seed))
    aware, plain = (
        rank_errors(conv.weight, gram, Factorize(1, method, split)) for method in ("activation-aware", "plain")
    )
    middle = slice(1, len(aware) - 1)
    assert (aware[middle] <= plain[middle] + 1e-9).all()


@pytest.mark.parametrize("shape", [(8, 12), (20, 6), (6, 4, 3, 3)], ids=str)
def test_plain_is_the_truncated_svd(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = weight.reshape(shape[0], -1)
    left, values, right = torch.svd(matrix)
    _inputs, gram = spread(300, matrix.shape[1])
    out_factor, in_factor = factors(weight, gram, Factorize(3, "plain"))
    expected = (left[:, :3] * values[:3]) @ right[:, :3].T
    torch.testing.assert_close(out_factor @ in_factor, expected, rtol=1e-9, atol=1e-9)


def test_errors_fall_with_the_rank_and_end_at_zero() -> None:
    _inputs, gram = spread(300, 10)
    errors = rank_errors(torch.randn(8, 10), gram, Factorize(1))
    assert len(errors) == 9
    assert (errors.diff() < 0).all()
    assert errors[-1] < 1e-6


def test_nothing_is_lost_of_a_layer_without_inputs() -> None:
    assert rank_errors(torch.randn(4, 5), torch.zeros(5, 5), Factorize(1)).tolist() == [0.0] * 5


@pytest.mark.parametrize("method", ["activation-aware", "plain"])
def test_an_embedding_becomes_a_narrow_one_and_a_linear(method: str) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(20, 6, padding_idx=3)
    numbers = torch.arange(20)
    twin = replaced(embedding, torch.eye(6), Factorize(6, method))
    assert twin[0].padding_idx == 3
    assert twin[1].bias is None
    torch.testing.assert_close(twin(numbers), embedding(numbers), rtol=1e-5, atol=1e-5)
    narrow = replaced(embedding, torch.eye(6), Factorize(2, method))
    left, values, right = torch.linalg.svd(embedding.weight.detach(), full_matrices=False)
    torch.testing.assert_close(narrow(numbers), (left[:, :2] * values[:2]) @ right[:2], rtol=1e-4, atol=1e-5)
    assert narrow(numbers)[3].abs().max() < 1e-6  # padding still reads zeros


@pytest.mark.parametrize("split", ["channel", "spatial"])
@pytest.mark.parametrize("rank", [1, 2])
def test_zeros_are_shaped_like_the_factors(split: str, rank: int) -> None:
    conv, settings = convolution(kernel_size=(3, 5)), Factorize(rank, split=split)
    made = factors(conv.weight, torch.zeros(0), settings)
    assert [z.shape for z in zero_factors(conv.weight, settings)] == [f.shape for f in made]


def test_no_random_number_is_drawn() -> None:
    conv = nn.Conv2d(2, 3, 3)
    before = torch.get_rng_state()
    replaced(conv, torch.zeros(0), Factorize(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("split", ["channel", "spatial"])
def test_the_exported_file_agrees_with_a_factorized_convolution(split: str) -> None:
    model = cnn()
    task = task_of(model)
    gram = gram_of(model.first, task.train.inputs["pixel_values"])
    model.first = replaced(model.first, gram, Factorize(2, split=split))
    agrees(model, task.test)


class Words(nn.Module):
    """The mean of word vectors, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(60, 12, padding_idx=1), nn.Linear(12, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.words(input_ids).mean(dim=1))


def test_the_exported_file_agrees_with_a_factorized_embedding() -> None:
    torch.manual_seed(0)
    model = Words()
    model.words = replaced(model.words, torch.eye(12), Factorize(4))
    numbers = torch.randint(0, 60, (6, 5), generator=torch.Generator().manual_seed(0))
    agrees(model, Examples({"input_ids": numbers}, torch.zeros(6, dtype=torch.int64)))


def agrees(model: nn.Module, examples: Examples) -> None:
    """Export the float graph and compare it with torch."""
    task = task_of(model, train=examples, validation=examples, test=examples, dynamic_axes={})
    session = onnxruntime.InferenceSession(float_graph(model, task).SerializeToString())
    inputs = examples.batch(range(5))[0]
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(found, run(model, inputs).numpy(), rtol=1e-4, atol=1e-5)
