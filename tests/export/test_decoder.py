"""Oracles: transformers' own `generate`, the model's logits of the whole text, and the graph without a past."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compressing.codes import Codes
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.shape import shape
from autocompress.errors import ExportError
from autocompress.export.decoder import Agreement, Decoder, _compared, decoder_agreement, decoder_graph, decoder_of
from autocompress.export.export import TOLERANCE, codes_for, float_graph
from autocompress.export.integers import insert_codes
from autocompress.export.products import exact
from autocompress.measure.decoding import KEPT, TOKENS, Ports, Prefill, Stream, generate, past_names
from autocompress.plan import LayerPlan, Plan, Prune, Quantize, legal_precisions
from autocompress.runtimes import Session, installed_runtimes, open_session
from autocompress.tasks.causal_lm import PERPLEXITY, next_token_loss
from autocompress.tasks.task import Examples, Task
from autocompress.weights import linearized
from tests.tiny import (
    DECODERS,
    VOCABULARY,
    Chooser,
    any_task,
    bert,
    build_any,
    llama,
    quantized,
    run,
    table_of,
    task_of,
)

RUNTIMES = installed_runtimes()
PROMPT, NEW = 7, 12


@dataclass(frozen=True)
class Opened:
    """A session that says what the file reads."""

    session: Session
    ports: Ports

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return self.session.run(inputs)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Opened]:
    def make(graph: onnx.ModelProto, runtime: str = "onnxruntime") -> Opened:
        path = tmp_path / "model.onnx"
        onnx.save(graph, path)
        axes = {item.name: item.type.tensor_type.shape.dim for item in graph.graph.input}
        ports = {n: tuple(d.dim_value if d.HasField("dim_value") else None for d in dims) for n, dims in axes.items()}
        return Opened(open_session(path, runtime, 1), ports)

    return make


def ids_of(count: int, length: int, seed: int = 3) -> Tensor:
    return torch.randint(2, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def task_on_text(model: nn.Module) -> Task:
    """Blocks of 20 tokens, nothing else read, graded by perplexity."""
    splits = {
        name: Examples({TOKENS: ids}, ids)
        for name, ids in (("train", ids_of(24, 20, 0)), ("validation", ids_of(6, 20, 1)), ("test", ids_of(4, 20, 2)))
    }
    return Task("text", model, metric=PERPLEXITY, loss=next_token_loss, **splits)


def continuation(model: nn.Module, prompt: Tensor, count: int = NEW) -> NDArray[Any]:
    """Greedy tokens ``(batch, count)`` of transformers itself; no token ends the text."""
    settings = copy.deepcopy(model.generation_config)
    settings.eos_token_id = None
    made = model.generate(
        prompt, generation_config=settings, attention_mask=torch.ones_like(prompt), max_new_tokens=count,
        do_sample=False,
    )  # fmt: skip
    return made[:, prompt.shape[1] :].numpy()


@cache
def plain(family: str) -> nn.Module:
    return build_any(family, layers=3)


@cache
def graph_of(family: str) -> onnx.ModelProto:
    return decoder_graph(plain(family), task_on_text(plain(family)))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("family", DECODERS)
def test_it_continues_a_text_as_transformers_does(opened: Callable[..., Opened], family: str, runtime: str) -> None:
    model = plain(family)
    session = opened(graph_of(family), runtime)
    prompt = ids_of(2, PROMPT)
    made = generate(session, prompt.numpy(), NEW)
    assert len(np.unique(made)) > 3  # not one token over and over
    np.testing.assert_array_equal(made, continuation(model, prompt))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_sliding_window_hides_what_is_too_far_back(opened: Callable[..., Opened], runtime: str) -> None:
    model, prompt = llama(name="Mistral", sliding_window=4), ids_of(2, PROMPT)
    session = opened(decoder_graph(model, task_on_text(model)), runtime)
    np.testing.assert_array_equal(generate(session, prompt.numpy(), NEW), continuation(model, prompt))
    np.testing.assert_allclose(
        Prefill(session).run({TOKENS: prompt.numpy()})[0], run(model, {TOKENS: prompt}).numpy(), rtol=1e-4, atol=1e-5
    )


def unlike(family: str, what: str) -> nn.Module:
    """The model without some parts; "uneven" leaves each layer another number of heads and half of all else."""
    task = any_task(family, layers=3)
    table = table_of(task)
    blocks = table.blocks
    plan: dict[str, Prune] = {}
    if what == "uneven":
        heads = iter((1, 2, 3))
        for group in table.groups:
            if group.kind == "heads":
                plan[group.name] = Prune(next(heads))
            elif group.kind in ("neurons", "hidden"):
                plan[group.name] = Prune(group.size // 2)
    else:
        gone = {
            "first block": blocks[:1],
            "two attentions": (f"{blocks[0]}/attention", f"{blocks[2]}/attention"),
            "all attentions": tuple(f"{block}/attention" for block in blocks),
        }[what]
        plan = dict.fromkeys(gone, Prune(0))
    return shape(task.model, Plan(plan), table, Chooser(task)).eval()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("what", ["uneven", "first block", "two attentions", "all attentions"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_left_of_a_pruned_model_continues_as_it_does_in_torch(
    opened: Callable[..., Opened], family: str, what: str, runtime: str
) -> None:
    model, prompt = unlike(family, what), ids_of(2, PROMPT)
    session = opened(decoder_graph(model, task_on_text(model)), runtime)
    np.testing.assert_array_equal(generate(session, prompt.numpy(), NEW), continuation(model, prompt))


def test_the_past_has_the_heads_that_each_layer_kept(opened: Callable[..., Opened]) -> None:
    model = unlike("llama", "uneven")
    ports = opened(decoder_graph(model, task_on_text(model))).ports
    assert list(ports) == [TOKENS, KEPT, *past_names(3)]
    assert [ports[name] for name in past_names(3)] == [(None, n, None, 8) for n in (1, 1, 2, 2, 3, 3)]


@pytest.mark.parametrize("split", [[9], [4, 5], [1] * 9, [3, 1, 5]], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_text_in_pieces_is_the_whole_text(opened: Callable[..., Opened], family: str, split: list[int]) -> None:
    model, ids = plain(family), ids_of(3, 9)
    stream, start, found = Stream(opened(graph_of(family)), 3), 0, []
    for length in split:
        found.append(stream.feed(ids[:, start : start + length].numpy(), np.arange(length)))
        start += length
    expected = run(model, {TOKENS: ids}).numpy()
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [[-1], [0, 5], [6]], ids=str)
def test_logits_are_made_where_they_are_asked_for(opened: Callable[..., Opened], kept: list[int]) -> None:
    model, ids = plain("gpt2"), ids_of(2, PROMPT)
    session = opened(graph_of("gpt2"))
    found = Stream(session, 2).feed(ids.numpy(), np.array(kept))
    np.testing.assert_allclose(found, run(model, {TOKENS: ids}).numpy()[:, kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_perplexity_is_that_of_the_graph_without_a_past(
    opened: Callable[..., Opened], family: str, runtime: str
) -> None:
    task = task_on_text(plain(family))
    inputs, targets = task.validation.batch(range(6))
    arrays = {name: value.numpy() for name, value in inputs.items()}
    scores = []
    for graph in (graph_of(family), float_graph(task.model, task)):
        logits = Prefill(opened(graph, runtime)).run(arrays)[0]
        scores.append(PERPLEXITY.score(PERPLEXITY.kept(logits, targets.numpy()), targets.numpy()))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@cache
def rounded(family: str, precision: str) -> tuple[nn.Module, dict[str, Codes]]:
    """The model, calibrated on text, with one precision on every layer that has it."""
    task = task_on_text(linearized(copy.deepcopy(plain(family))))
    legal = {layer.name: legal_precisions(layer) for layer in table_of(task).layers}
    names = [name for name, precisions in legal.items() if precision in precisions]
    if precision == "int4-weights":  # rows of an embedding come in whole groups of 32
        names = [name for name in names if "embed" not in name]
    plan = exact(quantized(precision, *names), "onnxruntime")
    made = quantize(shape(task.model, plan, table_of(task), Chooser(task)), plan, table_of(task), task.calibration())
    return made.model, made.codes


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_integers_continue_as_their_simulation_does(
    opened: Callable[..., Opened], family: str, precision: str, runtime: str
) -> None:
    """Of 32 tokens one may be a tie, as with llama in four bits (0.4 % apart); the continuations below have none."""
    model, codes = rounded(family, precision)
    codes = codes_for(codes, runtime)
    task = task_on_text(model)
    session = opened(insert_codes(decoder_graph(model, task), codes), runtime)
    twin = simulate(model, codes)
    found = decoder_agreement(twin, session, task)
    assert found.worst <= min(0.02, TOLERANCE[precision])
    assert found.equal >= found.tokens - 1 == 4 * 8 - 1
    prompt = ids_of(2, PROMPT)
    np.testing.assert_array_equal(generate(session, prompt.numpy(), NEW), continuation(twin, prompt))


@pytest.mark.parametrize("rows", ["fp32", "fp16", "int8-weights"])
@pytest.mark.parametrize("head", ["fp32", "fp16", "int8", "int8-dynamic", "int4-weights"])
def test_a_head_in_fewer_bits_leaves_its_embedding_its_own(opened: Callable[..., Opened], head: str, rows: str) -> None:
    """Bits of one of the two that share a weight are none of the other's; without any they share it in the file."""
    task = task_on_text(plain("gpt2"))
    names = {"lm_head": head, "transformer.wte": rows}
    layers = {name: LayerPlan(quantize=Quantize(bits)) for name, bits in names.items() if bits != "fp32"}
    plan, table = exact(Plan(layers=layers), "onnxruntime"), table_of(task)
    made = quantize(shape(task.model, plan, table, Chooser(task)), plan, table, task.calibration())
    assert set(made.codes) == set(layers)
    graph = insert_codes(decoder_graph(made.model, task), made.codes)
    twin, session = simulate(made.model, made.codes), opened(graph)
    rounds_inputs = head in ("int8", "int8-dynamic", "int4-weights")
    assert decoder_agreement(twin, session, task).worst <= (0.02 if rounds_inputs else 1e-5)
    embedding = torch.equal(twin.transformer.wte.weight, task.model.transformer.wte.weight)
    assert (embedding, torch.equal(twin.lm_head.weight, task.model.lm_head.weight)) == (rows == "fp32", head == "fp32")
    if not layers:
        assert graph == decoder_graph(linearized(copy.deepcopy(task.model)), task)
    prompt = ids_of(2, PROMPT)
    np.testing.assert_array_equal(generate(session, prompt.numpy(), NEW), continuation(twin, prompt))


def test_another_models_file_does_not_agree(opened: Callable[..., Opened]) -> None:
    model, other = plain("gpt2"), build_any("gpt2", layers=2)
    found = decoder_agreement(model, opened(decoder_graph(other, task_on_text(other))), task_on_text(model))
    assert found.deviation > 0.1
    assert found.equal < found.tokens
    assert found.gap > 0.01


def test_agreement_counts_what_is_compared() -> None:
    """One prompt, two steps; the file's second token is the one that torch gives 3 of the best one's 4."""
    wanted = [np.array([[[0.0, 5.0, 1.0]]]), np.array([[[4.0, 0.0, 3.0]]])]
    found = [np.array([[[0.0, 5.0, 1.0]]]), np.array([[[2.0, 0.0, 3.0]]])]
    made = _compared(found, wanted, [np.array([[1]]), np.array([[2]])])
    assert made == Agreement(deviation=2 / np.sqrt(25 + 1 + 16 + 9), tokens=2, equal=1, gap=1 / 5)
    assert made.worst == made.deviation


def test_what_is_no_number_agrees_with_nothing() -> None:
    one = np.zeros((1, 1, 2))
    assert _compared([one * np.nan], [one + 1], [np.array([[0]])]).worst == float("inf")


def test_the_model_is_left_as_it_was() -> None:
    model = plain("llama")
    before, attention = copy.deepcopy(model.state_dict()), model.config._attn_implementation
    decoder_graph(model, task_on_text(model))
    assert model.config._attn_implementation == attention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_keep_the_names_of_their_modules() -> None:
    model = plain("llama")
    names = {item.name for item in graph_of("llama").graph.initializer}
    linears = {f"model.{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linears <= names | {"model.lm_head.weight"}


def test_a_model_that_takes_no_past_is_refused() -> None:
    model = bert()
    with pytest.raises(
        ExportError,
        match=r"BertForSequenceClassification cannot be exported with a past: its forward must take past_key_values, "
        r"use_cache, logits_to_keep; leave new_tokens out of the profile's workload",
    ):
        decoder_graph(model, task_of(model))


def test_layers_that_see_differently_far_are_refused() -> None:
    model = llama(
        name="Qwen2", use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"]
    )
    with pytest.raises(ExportError, match=r"Qwen2ForCausalLM: its layers see differently far \(full_.*, sliding_"):
        decoder_graph(model, task_on_text(model))


def test_a_past_of_no_attention_counts_tokens() -> None:
    decoder = decoder_of(unlike("gpt2", "all attentions"))
    assert isinstance(decoder, Decoder)
    ids = ids_of(2, 5)
    _logits, *past = decoder(ids, torch.tensor([-1]), *decoder.past(2))
    assert [tuple(value.shape) for value in past] == [(2, 1, 5, 1)] * 2


def test_a_fault_while_tracing_names_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_settings: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    task = task_on_text(plain("gpt2"))
    with pytest.raises(ExportError, match="torch cannot export GPT2LMHeadModel with a past to ONNX: no such operator"):
        decoder_graph(task.model, replace(task, name="other"))
