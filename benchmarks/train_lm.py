"""The language model of the benchmarks: a small character-level GPT-2, trained from nothing on Shakespeare.

    python benchmarks/train_lm.py [--steps 1000] [--out benchmarks/models/gpt2-shakespeare]

About six minutes on two cores. Trains on the first 90 % of ../shared/data/tinyshakespeare/input.txt, the training
part of the `causal-lm` task, and writes a Hugging Face folder (model and tokenizer) with a README.md that says how it
came about. Nothing is chosen by the validation part; it and the test part are read once, at the end.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from autocompress.tasks.causal_lm import loss_sums, make_causal_lm, next_token_loss, perplexity
from autocompress.tasks.data import Wanted, load_texts
from autocompress.tasks.hub import silence
from autocompress.tasks.task import Examples

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
OUT = ROOT / "benchmarks" / "models" / "gpt2-shakespeare"

UNKNOWN = "<unk>"
CONTEXT = 128
SIZES = {"n_layer": 6, "n_embd": 128, "n_head": 4, "n_positions": CONTEXT}
BATCH = 32
PEAK_RATE = 2e-3
LAST_RATE = 2e-4
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.99)
MAX_GRADIENT_NORM = 1.0
#: Steps between two lines of progress.
EVERY = 100

CARD = """\
# gpt2-shakespeare

A character-level GPT-2 ({parameters:,} parameters: {n_layer} blocks, hidden size {n_embd}, {n_head} heads, context
{n_positions}, {vocabulary} tokens), trained from nothing on the first 90 % of tinyshakespeare. It is what the
language-model benchmarks compress; it has no other use.

| | perplexity per character |
|---|---|
| validation (the next 5 %) | {validation:.3f} |
| test (the last 5 %) | {test:.3f} |

Both on blocks of {n_positions} characters, as the task `causal-lm` scores them.

## Recipe

    {command}

{steps:,} steps of {batch} random windows of {n_positions} characters, {seconds:.0f} s on {threads} thread(s). AdamW
(betas {betas}, weight decay {decay} on matrices), learning rate up to {peak:g} in the first {warmup} of the steps and
down to {last:g} along a cosine, gradients clipped to norm {clip:g}, no dropout, fp32, seed {seed}; torch {torch},
transformers {transformers}. Mean training loss at the end {loss:.3f} nats.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    silence()
    splits = load_texts(options.data, Wanted("text", None, ("text",)))
    tokenizer = character_tokenizer(splits.train["text"][0])
    stream = torch.tensor(tokenizer(splits.train["text"][0], verbose=False)["input_ids"])
    model = new_model(len(tokenizer), options.seed)
    begun = time.perf_counter()
    loss = train(model, stream, options.steps, options.seed)
    seconds = time.perf_counter() - begun
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    task = make_causal_lm(options.out, options.data, max_length=CONTEXT)
    scores = {name: score(task.model, split) for name, split in (("validation", task.validation), ("test", task.test))}
    (options.out / "README.md").write_text(card(options, model, scores, loss, seconds), encoding="utf-8")
    print(f"{options.out}: perplexity {scores['validation']:.3f} on validation, {scores['test']:.3f} on test")


def character_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the characters of a text, in their order, after one for all others.

    Byte pairs that are never merged: the same as a table of characters, and faster on long texts.
    """
    vocabulary = {token: number for number, token in enumerate((UNKNOWN, *sorted(set(text))))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, model_max_length=CONTEXT)


def new_model(vocabulary: int, seed: int) -> GPT2LMHeadModel:
    """The untrained network."""
    torch.manual_seed(seed)
    none = {"bos_token_id": None, "eos_token_id": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    # The same function as GPT-2's own "gelu_new", as one kernel: a quarter of the training time less.
    config = GPT2Config(vocab_size=vocabulary, activation_function="gelu_pytorch_tanh", **SIZES, **none)
    return GPT2LMHeadModel(config)


def train(model: nn.Module, stream: Tensor, steps: int, seed: int) -> float:
    """Train in place; the mean loss of the last `EVERY` steps, in nats per character."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, PEAK_RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, steps))
    losses: list[float] = []
    model.train()
    begun = time.perf_counter()
    for step, ids in enumerate(windows(stream, steps, seed), start=1):
        loss = next_token_loss(model(input_ids=ids, use_cache=False).logits, ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % EVERY == 0 or step == steps:
            print(f"step {step} of {steps}: loss {np.mean(losses[-EVERY:]):.3f}, {time.perf_counter() - begun:.0f} s")
    model.eval()
    return float(np.mean(losses[-EVERY:]))


def windows(stream: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches ``(BATCH, CONTEXT)`` of windows that begin anywhere in the stream."""
    draw = np.random.default_rng(seed)
    offsets = torch.arange(CONTEXT)
    for _ in range(steps):
        starts = torch.from_numpy(draw.integers(0, len(stream) - CONTEXT + 1, BATCH))
        yield stream[starts[:, None] + offsets]


def rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear up, then half a cosine down to `LAST_RATE`."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    along = min(1.0, (step - warmup) / max(1, steps - warmup))
    floor = LAST_RATE / PEAK_RATE
    return floor + (1 - floor) * (1 + math.cos(math.pi * along)) / 2


def score(model: nn.Module, split: Examples) -> float:
    """Perplexity of a torch model, as the task computes it."""
    sums = []
    with torch.inference_mode():
        for _rows, inputs, targets in split.batches(BATCH):
            sums.append(loss_sums(model(**inputs, use_cache=False).logits.numpy(), targets.numpy()))
    return perplexity(np.concatenate(sums))


def card(
    options: argparse.Namespace, model: GPT2LMHeadModel, scores: dict[str, float], loss: float, seconds: float
) -> str:
    return CARD.format(
        parameters=model.num_parameters(),
        vocabulary=model.config.vocab_size,
        **SIZES,
        **scores,
        command=" ".join(["python", "benchmarks/train_lm.py", *sys.argv[1:]]),
        steps=options.steps,
        batch=BATCH,
        seconds=seconds,
        threads=options.threads,
        betas=BETAS,
        decay=WEIGHT_DECAY,
        peak=PEAK_RATE,
        warmup=f"{WARMUP_SHARE * 100:g} %",
        last=LAST_RATE,
        clip=MAX_GRADIENT_NORM,
        seed=options.seed,
        torch=torch.__version__,
        transformers=transformers.__version__,
        loss=loss,
    )


if __name__ == "__main__":
    main()
