"""Oracles: networks whose wiring is known, and the float output of the folded model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.flow import Flow, flow_of, fold_norms
from tests.tiny import tensors


class Wired(nn.Module):
    """Convolution, norm, ReLU, convolution; `kind` says what else reads what."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a = nn.Conv2d(1, 4, 3, padding=1, bias=kind == "bias")
        self.norm = nn.BatchNorm2d(4, affine=kind != "no-affine", track_running_stats=kind != "no-statistics")
        self.relu = nn.ReLU(inplace=kind == "in-place")
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        if self.norm.running_mean is not None:
            nn.init.normal_(self.norm.running_mean)
            nn.init.uniform_(self.norm.running_var, 0.2, 2)
        if self.norm.affine:
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        made = self.a(x)
        if self.kind == "no-norm":
            return self.b(torch.relu(made))
        if self.kind == "no-relu":
            return self.b(self.norm(made))
        if self.kind == "gelu":
            return self.b(nn.functional.gelu(self.norm(made)))
        if self.kind == "called-twice":
            return self.b(self.relu(self.norm(self.a(x)))) + made
        normed = self.norm(made)
        if self.kind == "made-read-too":
            return self.b(self.relu(normed)) + made
        hidden = self.relu(normed)
        if self.kind == "normed-read-too":
            return self.b(hidden) + normed
        if self.kind == "added-in-place":
            hidden += 1
        return self.b(hidden) + (hidden if self.kind == "rectified-read-too" else 0)


A, NORM = frozenset({"a"}), {"a": "norm"}
EXPECTED = {
    "plain": Flow(NORM, A, {"b": "a"}),
    "bias": Flow(NORM, A, {"b": "a"}),
    "in-place": Flow(NORM, A, {"b": "a"}),
    "no-affine": Flow(NORM, A, {"b": "a"}),
    "no-statistics": Flow({}, frozenset(), {}),
    "no-norm": Flow({}, A, {"b": "a"}),
    "no-relu": Flow(NORM, frozenset(), {"b": "a"}),
    "gelu": Flow(NORM, frozenset(), {}),
    "called-twice": Flow({}, frozenset(), {}),
    "made-read-too": Flow({}, frozenset(), {}),
    "normed-read-too": Flow(NORM, frozenset(), {}),
    "rectified-read-too": Flow(NORM, A, {"b": "a"}),
    "added-in-place": Flow(NORM, A, {}),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_readers_are_found(kind: str) -> None:
    model = Wired(kind).eval()
    found = flow_of(model, ["a"], ["a", "b"], tensors("x", (1, 6, 6), 4, 0))
    assert (dict(found.norms), found.rectified) == (EXPECTED[kind].norms, EXPECTED[kind].rectified)
    assert dict(found.feeds) == EXPECTED[kind].feeds


@pytest.mark.parametrize("kind", ["plain", "bias", "no-affine", "no-relu"])
def test_folding_changes_no_output(kind: str) -> None:
    model = Wired(kind).eval()
    value = torch.randn(5, 1, 6, 6)
    folded = fold_norms(model, {"a": "norm"})
    assert isinstance(folded.norm, nn.Identity)
    torch.testing.assert_close(folded(value), model(value), rtol=1e-5, atol=1e-5)
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_no_norms_need_no_copy() -> None:
    model = Wired("plain")
    assert fold_norms(model, {}) is model


def test_hooks_and_modes_are_put_back() -> None:
    model = Wired("plain").train()
    statistics = model.norm.running_mean.clone()
    with torch.inference_mode():
        flow_of(model, ["a"], ["b"], tensors("x", (1, 6, 6), 4, 0))
    assert model.training
    assert torch.equal(model.norm.running_mean, statistics)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
