"""Oracles: the program before folding, plain arithmetic, and torch's own state."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch._inductor.exc import InvalidCxxCompiler

from autocompress.compressing.quantize import quantize
from autocompress.errors import MeasureError
from autocompress.export.program import export_program, program_of, saved
from autocompress.runtimes import open_session
from autocompress.runtimes.folding import fold_constants, is_two_in_four, use_sparse_kernels
from tests.tiny import mlp, quantized, table_of, task_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    task = task_of(mlp())
    export_program(task.model, {}, task, tmp_path / "m.pt2", tmp_path, "f", "torch")
    return tmp_path / "m.pt2"


X = {"x": np.ones((2, 16), dtype=np.float32)}


def test_threads_are_the_sessions_own(file: Path) -> None:
    before = torch.get_num_threads()
    seen = []
    session = open_session(file, "torch", before + 1)
    call = session._call  # type: ignore[attr-defined]

    def noting(inputs: dict[str, Tensor]) -> object:
        seen.append(torch.get_num_threads())
        return call(inputs)

    session._call = noting  # type: ignore[attr-defined]
    session.run(X)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_an_input_that_is_missing_is_named(file: Path) -> None:
    with pytest.raises(MeasureError, match="the program takes input 'x', which is not among y, z"):
        open_session(file, "torch", 1).run({"y": X["x"], "z": X["x"]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("runtime", ["torch", "torch-compile"])
def test_a_machine_without_a_gpu_says_so(file: Path, runtime: str) -> None:
    with pytest.raises(MeasureError, match=r"m\.pt2: torch .* finds no CUDA device here"):
        open_session(file, runtime, 1, "cuda")


def test_torch_compile_without_a_compiler_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(MeasureError, match=r"m\.pt2: torch\.compile needs a C\+\+ compiler; install g\+\+"):
        open_session(file, "torch-compile", 1)


def folded(precision: str) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    """A program as it is in the file, the same folded, and inputs."""
    task = task_of(mlp())
    made = quantize(task.model, quantized(precision, "first", "second"), table_of(task), task.calibration())
    content = saved(program_of(made.model, made.codes, task))
    plain, other = (torch.export.load(io.BytesIO(content)).module(check_guards=False) for _ in range(2))
    with torch.no_grad():
        fold_constants(other)
    return plain, other, task.test.inputs["x"]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-dynamic", "int4-weights"])
def test_folding_changes_no_output(precision: str) -> None:
    plain, other, x = folded(precision)
    assert torch.equal(plain({"x": x}), other({"x": x}))


def test_folding_leaves_what_depends_on_inputs() -> None:
    _plain, other, _x = folded("int4-weights")
    targets = {str(node.target) for node in other.graph.nodes}
    assert "aten._weight_int4pack_mm_for_cpu.default" in targets
    assert "aten._convert_weight_to_int4pack_for_cpu.default" not in targets
    assert not [name for name, _value in other.named_buffers() if name.endswith("values")]  # the unpacked ones are gone


class Counting(nn.Module):
    """A model that changes its own state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls * 2


def test_folding_leaves_what_the_program_changes() -> None:
    x = torch.zeros(2)
    program = torch.export.export(Counting(), (x,)).module(check_guards=False)
    with torch.no_grad():
        fold_constants(program)
        assert [float(program(x)[0]) for _ in range(3)] == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("shape", "pattern", "expected"),
    [
        ((32, 64), (1.0, 0.0, 0.0, 1.0), True),
        ((32, 64), (1.0, 0.0, 0.0, 0.0), True),
        ((32, 64), (1.0, 1.0, 1.0, 0.0), False),
        ((16, 64), (1.0, 0.0, 0.0, 1.0), False),
        ((32, 32), (1.0, 0.0, 0.0, 1.0), False),
    ],
    ids=["two", "fewer", "three", "few-rows", "few-columns"],
)
def test_two_in_four_is_told_from_the_zeros(shape: tuple[int, int], pattern: tuple[float, ...], expected: bool) -> None:
    weight = torch.tensor(pattern).repeat(shape[0], shape[1] // 4)
    assert is_two_in_four(weight.half()) is expected
    assert not is_two_in_four(weight)  # float32 has no such kernel on every GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_two_in_four_runs_in_sparse_kernels_on_a_gpu() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 64).half().cuda()
    with torch.no_grad():
        linear.weight *= torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(64, 32).half().cuda()
    x = torch.randn(32, 128).half().cuda()
    program = torch.export.export(linear, (x,)).module(check_guards=False)
    expected = linear(x)
    with torch.inference_mode(False), torch.no_grad():
        use_sparse_kernels(program)
        torch.testing.assert_close(program(x), expected, rtol=1e-2, atol=1e-2)
    assert "SparseSemiStructured" in type(next(program.parameters())).__name__


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("runtime", ["torch", "torch-compile"])
def test_a_gpu_gives_what_the_processor_gives(file: Path, runtime: str) -> None:
    found = open_session(file, runtime, 1, "cuda", X).run(X)[0]
    np.testing.assert_allclose(found, open_session(file, "torch", 1).run(X)[0], atol=1e-3)
