"""Decoding with fewer bits: seconds per token of a small and of a wide GPT-2, in fp32, int8 and 4-bit weights.

    python benchmarks/decode.py [--threads 1] [--rounds 12] [--models gpt2,wide] [--runtimes onnxruntime,openvino]

Each line is one model in one runtime, with all precisions loaded at once and timed in turn, forwards and backwards, a
whole query at a time: the prompt, and the tokens after it with the past of the step before. Ratios are to fp32 of the
same round.

- `gpt2`: benchmarks/models/gpt2-shakespeare (6 blocks, hidden size 128). Trained, so its perplexity says what the bits
  cost; but its matrices are so small that a step is mostly calls, and its times say little about kernels.
- `wide`: 6 blocks of hidden size 768 and 50,257 tokens, the shape of DistilGPT-2, with random weights. Its times are
  those of real kernels; it has no perplexity worth telling, only its distance from torch. Its head has a weight of its
  own: one that is shared with the embedding takes no bits here.

Linears take the precision that the line names; beside integers the embeddings hold 8-bit rows, so that what differs is
the linears. OpenVINO runs int8-dynamic in float.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from common import Sheet, load, options, show, table_of
from transformers import GPT2Config, GPT2LMHeadModel

from autocompress.compressing.quantize import quantize, simulate
from autocompress.export.decoder import decoder_agreement, decoder_graph
from autocompress.export.export import codes_for
from autocompress.export.integers import insert_codes
from autocompress.export.products import exact
from autocompress.measure.decoding import TOKENS, Prefill, decode_query, decoded
from autocompress.measure.timing import bootstrap_median
from autocompress.plan import LayerPlan, Plan, Quantize, legal_precisions
from autocompress.runtimes import Session, open_session
from autocompress.tasks.task import Examples, Task
from autocompress.weights import linearized, untie

#: The first is what the others are held against.
PRECISIONS = ("fp32", "int8-dynamic", "int8", "int4-weights")
WIDE = {"n_layer": 6, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Case:
    """A model and its query."""

    task: Task
    prompt_length: int
    new_tokens: int
    trained: bool


def case_of(name: str) -> Case:
    if name == "gpt2":
        return Case(load("gpt2"), 96, 32, trained=True)
    if name != "wide":
        sys.exit(f"--models: unknown model {name!r}; choose from gpt2, wide")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**WIDE))
    ids = torch.randint(0, WIDE["vocab_size"], (16, 64))
    axes = {TOKENS: {1: "sequence"}}
    split = Examples({TOKENS: ids}, ids)
    return Case(Task("wide", model, split, split, split, dynamic_axes=axes), 128, 32, trained=False)


def plan_of(task: Task, precision: str) -> Plan:
    """One precision on every linear, 8-bit rows in every embedding."""
    bits = {"linear": precision, "embedding": "int8-weights"}
    if precision == PRECISIONS[0]:
        return Plan()
    layers = [layer for layer in table_of(task).layers if bits[layer.kind] in legal_precisions(layer)]
    return Plan(layers={layer.name: LayerPlan(quantize=Quantize(bits[layer.kind])) for layer in layers})


def made(task: Task, precision: str, runtime: str, path: Path) -> dict:
    """Write the file; its size and how it agrees with torch."""
    plan = exact(plan_of(task, precision), runtime)
    model = linearized(copy.deepcopy(task.source))
    untie(model, plan.layers)  # as `shape` does: a head in fewer bits shares no weight
    found = quantize(model, plan, table_of(task), task.calibration())
    codes = codes_for(found.codes, runtime)
    onnx.save(insert_codes(decoder_graph(found.model, task), codes), path)
    agreement = decoder_agreement(simulate(found.model, codes), open_session(path, runtime, 1), task)
    return {"size_bytes": path.stat().st_size, "agreement": asdict(agreement)}


def perplexity(session: Session, task: Task) -> float:
    """Of the very file that is timed, its past left empty."""
    kept = []
    for _rows, inputs, targets in task.validation.batches(task.score_batch):
        logits = Prefill(session).run({name: value.numpy() for name, value in inputs.items()})[0]
        kept.append(task.metric.kept(logits, targets.numpy()))
    return float(task.metric.score(np.concatenate(kept), task.validation.targets.numpy()))


def timed(sessions: dict[str, Session], case: Case, rounds: int) -> Iterator[tuple[str, dict]]:
    """Figures of every precision, from rounds in which each has a turn on the way there and one on the way back."""
    tokens = case.task.train.inputs[TOKENS][:8].reshape(1, -1).numpy()
    names, queries = list(sessions), {name: [] for name in sessions}
    for turn in range(rounds + 1):  # the first warms up
        for name in (*names, *reversed(names)):
            query = decode_query(sessions[name], {TOKENS: tokens}, case.prompt_length, case.new_tokens)
            if turn:
                queries[name].append(query)
    for name in names:
        yield name, {**asdict(decoded(queries[name])), **ratios(queries[name], queries[names[0]])}


def ratios(ours: Sequence, reference: Sequence) -> dict:
    """To the reference, round by round, with 95 % intervals: of whole queries and of a token after the first."""
    found = {}
    for what, of in (("query", lambda q: q[0] + sum(q[1])), ("token", lambda q: sum(q[1]))):
        both = [np.array([of(query) for query in side]).reshape(-1, 2).mean(axis=1) for side in (ours, reference)]
        interval = bootstrap_median(both[0] / both[1])
        found[f"{what}_ratio"] = [interval.value, interval.low, interval.high]
    return found


def run(name: str, runtime: str, threads: int, rounds: int) -> dict:
    case = case_of(name)
    with tempfile.TemporaryDirectory(prefix="decode-") as folder:
        paths = {precision: Path(folder) / f"{precision}.onnx" for precision in PRECISIONS}
        values = {precision: made(case.task, precision, runtime, path) for precision, path in paths.items()}
        sessions = {precision: open_session(path, runtime, threads) for precision, path in paths.items()}
        if case.trained:
            for precision, session in sessions.items():
                values[precision]["perplexity"] = perplexity(session, case.task)
        for precision, figures in timed(sessions, case, rounds):
            values[precision].update(figures)
    return values


def main() -> None:
    chosen = options(__doc__, rounds=12, models="gpt2,wide", runtimes="onnxruntime,openvino")
    sheet = Sheet("decode")
    for name in chosen.models.split(","):
        for runtime in () if chosen.show else chosen.runtimes.split(","):
            case = {"model": name, "runtime": runtime, "threads": chosen.threads, "rounds": chosen.rounds}
            sheet.run(lambda n=name, r=runtime: run(n, r, chosen.threads, chosen.rounds), **case)
    rows = []
    for line in sheet.lines:
        for precision, values in line["values"].items():
            case, (ratio, low, high) = line["case"], values["token_ratio"]
            rows.append(
                (
                    f"{case['model']}, {case['runtime']}, {case['threads']}",
                    precision,
                    f"{1e3 * values['first_token_s']:.2f}",
                    f"{1e3 * values['per_token_s']:.3f}",
                    f"{ratio:.3f} ({low:.3f}-{high:.3f})",
                    f"{values['query_ratio'][0]:.3f}",
                    f"{values['size_bytes'] / 1e6:.1f}",
                    f"{values['perplexity']:.3f}" if "perplexity" in values else "–",
                )
            )
    heads = ("model, runtime, threads", "linears", "first ms", "token ms", "token / fp32", "query / fp32", "MB", "ppl")
    show("Decoding, all precisions of a line timed in turn", heads, rows)


if __name__ == "__main__":
    main()
