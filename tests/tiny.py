"""Tiny seeded models, data and tasks for the tests of the torch rooms; and one fixture that conftests share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.bank import Bank
from autocompress.hardware import HardwareProfile
from autocompress.layers import Group, Layer, LayerTable
from autocompress.plan import Factorize, LayerPlan, Mask, Plan, Precision, Prune, Quantize, legal_precisions
from autocompress.runtimes import RUNTIMES
from autocompress.survey import survey
from autocompress.tasks.task import Examples, Metric, Task
from autocompress.weights import matrix_of, weight_of

VOCABULARY = 60
CLASSES = 3
LENGTHS = (5, 9, 12, 7)
FAMILIES = ("bert", "roberta", "vit")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stirred(model: nn.Module, seed: int = 0, amount: float = 0.1) -> nn.Module:
    """The model with noise on every parameter, so that no bias is zero and no two layers are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def bert(hidden: int = 32, layers: int = 2, heads: int = 4, neurons: int = 64, seed: int = 0) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
        max_position_embeddings=40,
        num_labels=CLASSES,
    )
    return stirred(BertForSequenceClassification(config), seed)


def roberta(layers: int = 2) -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=42,
        num_labels=CLASSES,
        pad_token_id=1,
    )
    return stirred(RobertaForSequenceClassification(config), 1)


def vit(layers: int = 2) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=CLASSES,
    )
    return stirred(ViTForImageClassification(config), 2)


class Mlp(nn.Module):
    """Two linears on rank-2 inputs ``(n, 16)``."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Cnn(nn.Module):
    """Two convolutions, the second grouped and without bias, and a linear, on images ``(n, 1, 8, 8)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, stride=2)
        self.second = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(pixel_values))))
        return self.head(hidden.mean(dim=(2, 3)))


def mlp(width: int = 48) -> nn.Module:
    torch.manual_seed(3)
    return Mlp(width).eval()


def cnn() -> nn.Module:
    torch.manual_seed(4)
    return Cnn().eval()


def texts(count: int, seed: int, lengths: tuple[int, ...] = LENGTHS) -> Examples:
    """Ragged token ids (none of them padding) with their masks."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(2, VOCABULARY, (lengths[i % len(lengths)],), generator=generator) for i in range(count)]
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    columns = {"input_ids": ids, "attention_mask": [torch.ones_like(row) for row in ids]}
    return Examples(columns, targets, {"input_ids": 1, "attention_mask": 0})


def tensors(name: str, shape: tuple[int, ...], count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, *shape, generator=generator)
    return Examples({name: values}, torch.randint(0, CLASSES, (count,), generator=generator))


def task_of(model: nn.Module, lengths: tuple[int, ...] = LENGTHS, **changes: Any) -> Task:
    """A task with 24 train, 12 validation and 10 test samples of the kind that the model takes."""
    counts = {"train": (24, 10), "validation": (12, 11), "test": (10, 12)}
    axes = {}
    if isinstance(model, Mlp):
        made = {split: tensors("x", (16,), *c) for split, c in counts.items()}
    elif isinstance(model, Cnn) or type(model).__name__.startswith("ViT"):
        made = {split: tensors("pixel_values", (1, 8, 8), *c) for split, c in counts.items()}
    else:
        made = {split: texts(*c, lengths) for split, c in counts.items()}
        axes = {name: {1: "sequence"} for name in made["train"].inputs}
    return Task(**{"name": "tiny", "model": model, **made, "dynamic_axes": axes, "batch_size": 8, **changes})


def build(family: str, layers: int = 2) -> nn.Module:
    return {"bert": bert, "roberta": roberta, "vit": vit}[family](layers=layers)


def table_of(task: Task) -> LayerTable:
    return survey(task.source, task.workload_inputs(1, None))


def bank_of(task: Task, folder: Path) -> Bank:
    return Bank(folder, task, table_of(task))


def run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits in evaluation mode."""
    with torch.inference_mode():
        output = copy.deepcopy(model).eval()(**inputs)
    return output if isinstance(output, Tensor) else output.logits


def quantized(precision: str, *names: str, **settings: Any) -> Plan:
    """A plan that gives the named layers one precision."""
    return Plan(layers={name: LayerPlan(quantize=Quantize(precision, **settings)) for name in names})


def claimed(layer: Layer, runtime: str = "onnxruntime") -> list[Precision]:
    """The layer's precisions that a runtime has on a processor."""
    return [precision for precision in legal_precisions(layer) if precision in RUNTIMES[runtime].kernels[layer.kind]]


def profile_of(runtime: str = "onnxruntime") -> HardwareProfile:
    """One thread and the shortest protocol that is allowed."""
    kinds = {"linear": ("fp32", "int8"), "conv": ("fp32", "int8"), "embedding": ("fp32", "int8-weights")}
    timing = {"warmup_seconds": 0.01, "block_seconds": 0.001, "max_blocks": 8, "report_queries": 40}
    return HardwareProfile.model_validate(
        {"name": "tiny", "runtime": runtime, "threads": 1, "precisions": kinds, "timing": timing}
    )


def spread(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated inputs ``(rows, columns)`` of very different sizes, float64, and their second moment."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(rows, columns)) @ draw.normal(size=(columns, columns))
    inputs = torch.from_numpy(mixed * np.exp(draw.normal(size=columns)))
    return inputs, inputs.T @ inputs / rows


DECODERS = ("gpt2", "llama", "mistral", "qwen2")
#: A model of every family that an adapter describes.
ALL_FAMILIES = (*FAMILIES, "distilbert", "gpt2", "llama")


def distilbert(layers: int = 2) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(5)
    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=layers,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=40,
        num_labels=CLASSES,
    )
    return stirred(DistilBertForSequenceClassification(config), 5)


def gpt2(layers: int = 2) -> nn.Module:
    """A causal language model whose head shares its weight with the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(6)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_inner=64,
        n_positions=40,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    return stirred(GPT2LMHeadModel(config), 6)


def llama(layers: int = 2, name: str = "Llama", **changes: Any) -> nn.Module:
    """Six query heads on three key/value heads, of a class that is called `name`; mistral and qwen2 are alike."""
    import transformers

    torch.manual_seed(7)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    return stirred(getattr(transformers, f"{name}ForCausalLM")(config), 7)


def build_any(family: str, layers: int = 2) -> nn.Module:
    """A model of one of `ALL_FAMILIES` or `DECODERS`."""
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
    if family in names:
        return llama(layers, names[family])
    others = {"distilbert": distilbert, "gpt2": gpt2}
    return others[family](layers) if family in others else build(family, layers)


def any_task(family: str, layers: int = 2) -> Task:
    """A task for `build_any`; a decoder is graded on the token that follows the last one."""
    model = build_any(family, layers)
    if family not in DECODERS:
        return task_of(model)
    metric = Metric("next token", True, lambda logits, targets: float((logits[:, -1].argmax(-1) == targets).mean()))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[:, -1], targets)

    return task_of(model, metric=metric, loss=loss)


class Chooser:
    """What `shape` asks the bank, worked out plainly: structures drawn by chance, repair by the normal equations."""

    def __init__(self, task: Task) -> None:
        self.model = task.source
        self.inputs = task.calibration().batch(range(24))[0]

    def _seen(self, module: str) -> tuple[Tensor, Tensor]:
        """Inputs ``(n, in)`` and outputs ``(n, out)`` of a module over the calibration samples."""
        seen: list[Tensor] = []

        def note(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            result = output[0] if isinstance(output, tuple) else output
            seen.extend(value.reshape(-1, value.shape[-1]) for value in (args[0] if args else result, result))

        handle = self.model.get_submodule(module).register_forward_hook(note)
        try:
            with torch.inference_mode():
                self.model(**self.inputs)
        finally:
            handle.remove()
        return seen[0], seen[1]

    def gram(self, layer: str) -> Tensor:
        if isinstance(self.model.get_submodule(layer), nn.Embedding):
            return torch.eye(weight_of(self.model.get_submodule(layer)).shape[1])
        inputs = self._seen(layer)[0]
        return inputs.T @ inputs / len(inputs)

    def kept(self, group: Group, prune: Prune, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + len(group.name))
        return torch.randperm(group.size, generator=generator)[: prune.keep].sort().values

    def repaired(self, layer: str, columns: Tensor) -> Tensor:
        gram = self.gram(layer).double()
        inner = gram[columns][:, columns]
        inner += 1e-6 * inner.diagonal().mean() * torch.eye(len(columns))
        matrix = matrix_of(self.model.get_submodule(layer)).double()
        return torch.linalg.solve(inner, (matrix @ gram[:, columns]).T).T.float()

    def mean_output(self, module: str, _width: int) -> Tensor:
        return self._seen(module)[1].mean(0)

    def operated(self, weight: Tensor, gram: Tensor, mask: Mask) -> Tensor:
        from autocompress.compressing.surgeon import surgeon

        return surgeon(weight, gram, mask.sparsity, mask.n_m)

    def factors(self, weight: Tensor, gram: Tensor, settings: Factorize) -> tuple[Tensor, Tensor]:
        from autocompress.compressing.factorize import factors

        return factors(weight, gram, settings)

    def fisher(self, layer: str) -> Tensor:
        return torch.ones_like(matrix_of(self.model.get_submodule(layer)))
