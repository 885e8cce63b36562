"""Oracles: the token stream itself, the model's own loss by ``labels=``, and resampling for the standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from autocompress.errors import DataError, ModelError
from autocompress.export import export_model
from autocompress.pipeline import Score, score_artifact
from autocompress.tasks import TaskSource, load_task
from autocompress.tasks.causal_lm import (
    IGNORED,
    PERPLEXITY,
    loss_sums,
    make_causal_lm,
    next_token_loss,
    perplexity,
    perplexity_per_block,
    token_losses,
)
from autocompress.tasks.task import ACCURACY, Task
from autocompress.workshop import Workshop, write_workload
from tests.tiny import bank_of, profile_of, run, stirred

CHARACTERS = "abcdefgh .\n"
END = "<end>"
LENGTH = 8
LIMIT = 32


def character_tokenizer(end: bool = False) -> object:
    """One token per character, in the order of `CHARACTERS` after the unknown one, and maybe an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(("<unk>", *CHARACTERS, END))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    names = {"unk_token": "<unk>", **({"eos_token": END} if end else {})}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def gpt2(vocabulary: int = 16) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    none = {"bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(vocab_size=vocabulary, n_positions=LIMIT, n_embd=16, n_layer=2, n_head=2, **none)
    return stirred(GPT2LMHeadModel(config))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": LIMIT}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return stirred(LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes, **heads, **none)))


def saved(model: nn.Module, folder: Path, tokenizer: object = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or character_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[gpt2, llama], ids=lambda f: f.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(gpt2(), tmp_path_factory.mktemp("gpt2"))


def text_of(count: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(CHARACTERS), count))


def ids_of(text: str) -> list[int]:
    return [1 + CHARACTERS.index(character) for character in text]


def written(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


TEXTS = {"train": text_of(203), "valid": text_of(101, 1), "test": text_of(64, 2)}


@pytest.fixture
def task(model: Path, tmp_path: Path) -> Task:
    return make_causal_lm(model, written(tmp_path / "data", **TEXTS), max_length=LENGTH)


def test_blocks_laid_end_to_end_are_the_token_stream(task: Task) -> None:
    for split, name in ((task.train, "train"), (task.validation, "valid"), (task.test, "test")):
        kept = len(TEXTS[name]) // LENGTH * LENGTH
        assert split.inputs["input_ids"].shape == (kept // LENGTH, LENGTH)
        assert split.inputs["input_ids"].reshape(-1).tolist() == ids_of(TEXTS[name][:kept])
        assert torch.equal(split.inputs["input_ids"], split.targets)
    assert task.notes == (
        "blocks of 8 tokens: 25 for train (3 tokens dropped), 12 for validation (5 tokens dropped), "
        "8 for test (0 tokens dropped)",
    )


def test_the_only_input_is_a_sequence_of_any_length(task: Task) -> None:
    assert task.input_names == ("input_ids",)
    assert task.dynamic_axes == {"input_ids": {1: "sequence"}}


def test_the_loss_is_the_models_own(task: Task) -> None:
    inputs, targets = task.train.batch(range(5))
    with torch.inference_mode():
        output = task.model(**inputs, labels=targets)
    assert task.loss(output.logits, targets) == pytest.approx(float(output.loss), rel=1e-6)


def test_perplexity_is_exp_of_the_models_own_loss(task: Task) -> None:
    inputs, targets = task.validation.batch(range(12))
    with torch.inference_mode():
        output = task.model(**inputs, labels=targets)
    sums = task.metric.kept(output.logits.numpy(), targets.numpy())
    assert sums.shape == (12, 2)
    assert task.metric.score(sums, targets.numpy()) == pytest.approx(math.exp(float(output.loss)), rel=1e-6)
    assert not task.metric.maximize
    assert task.metric.points == 1


def shop_of(task: Task, root: Path) -> Workshop:
    from autocompress.distill import TeacherCache
    from autocompress.measure.latency import Bench

    bank = bank_of(task, root / "bank")
    profile = profile_of()
    bench = Bench(profile, root / "inputs.npz", root / "dense.onnx")
    return Workshop(root, task, bank.table, profile, bank, TeacherCache(root / "teacher.npy", task), bench)


def exported_score(task: Task, root: Path) -> Score:
    artifact = export_model(task.model, {}, task, root / "dense.onnx", root, "dense", "onnxruntime")
    write_workload(root / "inputs.npz", task, profile_of().workload)
    return score_artifact(artifact, shop_of(task, root), task.validation)


@pytest.mark.parametrize("score_batch", [5, 32])
def test_the_exported_file_has_the_perplexity_of_torch(task: Task, tmp_path: Path, score_batch: int) -> None:
    object.__setattr__(task, "score_batch", score_batch)
    inputs, targets = task.validation.batch(range(12))
    with torch.inference_mode():
        expected = math.exp(float(task.model(**inputs, labels=targets).loss))
    score = exported_score(task, tmp_path)
    assert score.value == pytest.approx(expected, abs=1e-3)
    assert score.stderr is not None
    assert 0 < score.stderr < score.value


def test_an_overflowing_perplexity_is_refused_and_not_reported(task: Task, tmp_path: Path) -> None:
    with torch.no_grad():
        task.model.get_output_embeddings().weight.mul_(1e5)
    with pytest.raises(ModelError, match=r"perplexity of dense\.onnx is inf"):
        exported_score(task, tmp_path)


def test_positions_that_are_ignored_change_nothing() -> None:
    logits = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 9, (3, 6), generator=torch.Generator().manual_seed(1))
    ragged = targets.clone()
    ragged[0, 4:] = IGNORED
    longer = torch.cat([logits, torch.full((3, 2, 9), 50.0)], dim=1)
    padded = nn.functional.pad(targets, (0, 2), value=IGNORED)
    assert next_token_loss(longer, padded) == pytest.approx(float(next_token_loss(logits, targets)), rel=1e-6)
    kept = [token_losses(logits, targets)[0, :3], token_losses(logits, targets)[1:].reshape(-1)]
    assert next_token_loss(logits, ragged) == pytest.approx(float(torch.cat(kept).mean()), rel=1e-6)
    assert loss_sums(logits.numpy(), ragged.numpy())[:, 1].tolist() == [3, 5, 5]


def test_token_losses_by_a_slow_loop() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1]])
    found = token_losses(logits, targets)
    for n in range(2):
        for i in range(3):
            share = torch.exp(logits[n, i])[targets[n, i + 1]] / torch.exp(logits[n, i]).sum()
            assert found[n, i] == pytest.approx(-math.log(float(share)), rel=1e-5)


def test_blocks_weigh_by_their_tokens() -> None:
    sums = np.array([[6.0, 3.0], [1.0, 1.0]])
    assert perplexity(sums) == pytest.approx(math.exp(7 / 4))


def test_the_mean_over_blocks_is_the_perplexity() -> None:
    draw = np.random.default_rng(0)
    sums = np.stack([draw.gamma(9, 1.0, 40), draw.integers(3, 9, 40).astype(float)], axis=1)
    assert perplexity_per_block(sums).mean() == pytest.approx(perplexity(sums))


def test_the_standard_error_is_that_of_resampled_blocks() -> None:
    draw = np.random.default_rng(0)
    counts = draw.integers(20, 60, 400).astype(float)
    sums = np.stack([counts * draw.normal(1.5, 0.2, 400), counts], axis=1)
    claimed = perplexity_per_block(sums).std(ddof=1) / np.sqrt(400)
    resampled = [perplexity(sums[draw.integers(0, 400, 400)]) for _ in range(2000)]
    assert claimed == pytest.approx(np.std(resampled), rel=0.1)


def test_a_metric_without_statistics_keeps_the_outputs() -> None:
    logits = np.ones((2, 3))
    assert ACCURACY.kept(logits, np.zeros(2)) is logits
    assert PERPLEXITY.reduce is loss_sums


@pytest.mark.parametrize(("batch", "length", "shape"), [(1, 20, (1, 20)), (3, 5, (3, 5)), (2, None, (2, LENGTH))])
def test_a_query_is_training_text_in_order(task: Task, batch: int, length: int | None, shape: tuple[int, int]) -> None:
    ids = task.workload_inputs(batch, length)["input_ids"]
    assert ids.shape == shape
    assert ids.reshape(-1).tolist() == ids_of(TEXTS["train"][: ids.numel()])
    assert run(task.model, {"input_ids": ids}).shape == (*shape, 16)


def test_a_query_longer_than_the_text_begins_again(gpt2_folder: Path, tmp_path: Path) -> None:
    text = text_of(10, 3)
    task = make_causal_lm(gpt2_folder, written(tmp_path, train=text, valid=text, test=text), max_length=10)
    ids = task.workload_inputs(2, 12)["input_ids"]
    assert ids.reshape(-1).tolist() == ids_of((text * 3)[:24])


def test_a_query_beyond_the_models_positions_is_refused(task: Task) -> None:
    with pytest.raises(ModelError, match=r"takes 32 tokens at most, but .*sequence_length is 33"):
        task.workload_inputs(1, 33)


def test_one_text_is_cut_into_consecutive_parts_and_said(gpt2_folder: Path, tmp_path: Path) -> None:
    text = text_of(1000, 4)
    task = make_causal_lm(gpt2_folder, written(tmp_path, all=text) / "all.txt", max_length=10)
    parts = [split.targets.reshape(-1).tolist() for split in (task.train, task.validation, task.test)]
    assert [len(part) for part in parts] == [900, 50, 50]
    assert [*parts[0], *parts[1], *parts[2]] == ids_of(text)
    assert task.notes[:2] == (
        "no test text: the last 50 of 1,000 training characters were cut off for it",
        "no validation text: the last 50 of 950 training characters were cut off for it",
    )


def test_a_table_gives_its_texts_with_what_stands_between_them(gpt2_folder: Path, tmp_path: Path) -> None:
    rows = ["abc", "", "de fg", "h"] * 3
    for split in ("train", "validation", "test"):
        pd.DataFrame({"id": range(12), "text": rows}).to_csv(tmp_path / f"{split}.csv", index=False)
    task = make_causal_lm(gpt2_folder, tmp_path, max_length=4)
    joined = "\n\n".join(row for row in rows if row)
    assert task.train.targets.reshape(-1).tolist() == ids_of(joined[: len(joined) // 4 * 4])


def test_a_tokenizers_own_end_closes_each_text_of_a_table(tmp_path: Path) -> None:
    folder = saved(gpt2(), tmp_path / "model", character_tokenizer(end=True))
    pd.DataFrame({"content": ["abc", "de"] * 10}).to_parquet(tmp_path / "train.parquet")
    pd.DataFrame({"content": ["abc", "de"] * 10}).to_parquet(tmp_path / "test.parquet")
    task = make_causal_lm(folder, tmp_path, max_length=7)
    end = 1 + len(CHARACTERS)
    assert task.test.targets[0].tolist() == [*ids_of("abc"), end, *ids_of("de"), end]


def test_load_task_finds_it_by_name(gpt2_folder: Path, tmp_path: Path) -> None:
    data = str(written(tmp_path, **TEXTS))
    task = load_task(TaskSource("causal-lm", model=str(gpt2_folder), data=data), max_length=16)
    assert task.name == "causal-lm"
    assert task.train.targets.shape == (12, 16)


def test_the_tokenizer_is_saved_with_the_model(task: Task, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert task.save_processor is not None
    task.save_processor(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a bad")["input_ids"] == ids_of("a bad")


def test_the_snippet_makes_inputs_of_the_model(task: Task, tmp_path: Path) -> None:
    import transformers

    task.save_processor(tmp_path)
    inputs = eval(task.snippet.inputs, {"transformers": transformers, "folder": tmp_path})
    assert run(task.model, {"input_ids": torch.from_numpy(inputs["input_ids"])}).shape == (1, 16, 16)


def test_batches_shrink_for_a_large_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.tasks import causal_lm

    monkeypatch.setattr(causal_lm, "LOGITS_BYTES", 4 * LENGTH * 16 * 3)
    folder = saved(gpt2(), tmp_path / "model")
    task = make_causal_lm(folder, written(tmp_path / "data", **TEXTS), max_length=LENGTH)
    assert (task.batch_size, task.score_batch) == (3, 3)


def test_a_block_longer_than_the_models_positions_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    reason = rf"--model {gpt2_folder}: takes 32 tokens at most, but .*sequence_length is 128"
    with pytest.raises(ModelError, match=reason):
        make_causal_lm(gpt2_folder, written(tmp_path, **TEXTS))


def test_a_block_of_one_token_has_nothing_to_predict(gpt2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="sequence_length must be 2 or more, but is 1"):
        make_causal_lm(gpt2_folder, written(tmp_path, **TEXTS), max_length=1)


def test_a_text_shorter_than_a_block_names_split_and_lengths(gpt2_folder: Path, tmp_path: Path) -> None:
    data = written(tmp_path, **{**TEXTS, "valid": "abc"})
    with pytest.raises(DataError, match="split 'validation': 3 tokens are less than one block of 8"):
        make_causal_lm(gpt2_folder, data, max_length=LENGTH)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = saved(gpt2(vocabulary=7), tmp_path / "model")
    with pytest.raises(ModelError, match="its tokenizer gives token 11, but the model knows 7 tokens"):
        make_causal_lm(folder, written(tmp_path / "data", **TEXTS), max_length=LENGTH)


def test_a_model_that_reads_both_ways_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=16, max_position_embeddings=32, **sizes)
    folder = saved(stirred(BertLMHeadModel(config)), tmp_path / "model")
    with pytest.raises(ModelError, match="BertLMHeadModel looks at later tokens to predict earlier ones"):
        make_causal_lm(folder, written(tmp_path / "data", **TEXTS), max_length=LENGTH)


def test_a_row_that_is_no_text_is_named(gpt2_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        pd.DataFrame({"text": [7, 8, 9]}).to_csv(tmp_path / f"{split}.csv", index=False)
    with pytest.raises(DataError, match="split 'train': row 0: the text must be a string, but got 7"):
        make_causal_lm(gpt2_folder, tmp_path, max_length=LENGTH)


def beside(**tables: pd.DataFrame) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        return folder

    return make


ROWS = pd.DataFrame({"story": ["abc", "de"]})


@pytest.mark.parametrize(
    ("make", "column", "reason"),
    [
        (lambda folder: folder / "no.txt", None, r"--data .*no\.txt: no such file"),
        (lambda folder: folder, None, r"--data .*: holds no \.csv, .*, \.txt file"),
        (lambda folder: written(folder, valid="abc"), None, r"no training text; name a file train\*\.txt"),
        (lambda folder: written(folder, train="abc", valid="abc", test=" \n"), None, "the test text is empty"),
        (lambda folder: written(folder, all="abc"), None, "3 characters are too few to cut off a test text"),
        (lambda folder: written(folder, **TEXTS), "story", "--text-column story: .* is plain text, which has no col"),
        (lambda folder: beside(train=ROWS)(written(folder, **TEXTS)), None, "both texts and tables named after splits"),
        (beside(train=ROWS), None, r"which column holds the text\? give --text-column; columns: story"),
        (beside(train=ROWS), "storie", r"has no column 'storie'; did you mean 'story'\? \(--text-column\)"),
    ],
    ids=["no-file", "no-text", "no-train", "blank", "too-short", "column", "both", "which", "unknown"],
)
def test_data_that_cannot_be_used_says_why(
    gpt2_folder: Path, tmp_path: Path, make: Callable[[Path], Path], column: str | None, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        make_causal_lm(gpt2_folder, make(tmp_path), column, max_length=LENGTH)


def test_text_that_is_not_utf8_names_the_file(gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"abc\xff\xfe")
    with pytest.raises(DataError, match=r"train\.txt: cannot be read as UTF-8 text"):
        make_causal_lm(gpt2_folder, tmp_path, max_length=LENGTH)


def test_a_note_beside_a_table_is_not_the_data(gpt2_folder: Path, tmp_path: Path) -> None:
    written(tmp_path, notes="abc")
    pd.DataFrame({"text": ["abc def"] * 20}).to_csv(tmp_path / "all.csv", index=False)
    task = make_causal_lm(gpt2_folder, tmp_path, max_length=LENGTH)
    assert task.train.targets.reshape(-1)[:9].tolist() == ids_of("abc def\n\n")[:9]
