"""The bank: what is computed once on the dense model and shared by every candidate.

Holds second moments of the layers' inputs, the order in which each group's structures go, weights re-solved for what
stays, decompositions that give any rank, mean outputs of removable parts, squared gradients, and whole-model weights
that plans name. A candidate is assembled from these. Entries are named by what they depend on; see `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.compressing.building import Crew, Say
from autocompress.compressing.choices import Kept
from autocompress.compressing.factorize import Decomposition, factors_at
from autocompress.compressing.jobs import VALUE, Job, decomposition_job, input_key, one_thread, run_job
from autocompress.compressing.mask import masked, seed_of
from autocompress.compressing.menu import Option, OptionError, option_error, options_of
from autocompress.compressing.passes import Passes
from autocompress.compressing.sequential import repair_in_sequence
from autocompress.compressing.store import Store, Tensors, digest_all
from autocompress.errors import ModelError, PlanError
from autocompress.layers import Group, LayerTable
from autocompress.plan import Factorize, Mask, Plan, Prune
from autocompress.tasks.task import Task
from autocompress.weights import matrix_of, tied_weights, weight_of, window_of

#: Scores that look at the inputs, so that the second moments are needed.
BY_INPUT = ("obs", "wanda")


class Bank:
    """What is known of one dense model, kept in `folder`; the `Choices` of real candidates.

    What it returns is shared: never edit it. Matrix work runs on one thread, so that a plan gives the same weights
    however many cores there are.

    Args:
        folder: where entries lie; made when the first is written.
        task: gives the dense model, which is never edited, and the calibration samples whose activations decide.
        table: the model's layers and groups.
        limit_bytes: of the folder; over it the least useful entries go. None for no limit.
    """

    def __init__(self, folder: Path, task: Task, table: LayerTable, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.model = task.source
        self.table = table
        self.store = Store(folder, limit_bytes)
        self.passes = Passes(task, table, self.store)
        self._sources: dict[str, Callable[[], Tensor]] = {}
        self._weight_keys: dict[str, str] = {}

    def gram(self, layer: str) -> Tensor:
        """Second moment of a layer's inputs, float32 ``(in·kh·kw, in·kh·kw)``; the identity for an embedding.

        Raises:
            ModelError: there is none, since the layer is a grouped convolution or is not called; or its weight holds
                NaN or infinity.
            DataError: a calibration input holds NaN or infinity.
        """
        known = self.table.layer(layer)
        self._weight_key(layer)
        return torch.eye(known.weight_shape[1]) if known.kind == "embedding" else self.passes.moment(layer)

    def kept(self, group: Group, prune: Prune, seed: int) -> Tensor:
        """Numbers of the structures that stay, ascending; ``(prune.keep,)``.

        The first ones for score "given": the weights that are loaded afterwards hold the right ones.
        """
        if prune.score == "given":
            return torch.arange(prune.keep)
        order = self.order(group, prune.score, seed)
        return order[len(order) - prune.keep :].sort().values

    def order(self, group: Group, score: str = "obs", seed: int = 0) -> Tensor:
        """A counted group's structures, the one missed least first; ``(size,)``. See `prune.structure_order`."""
        return self._run(self._order_job(group, score, seed))[VALUE]

    def repaired(self, layer: str, columns: Tensor) -> Tensor:
        """The dense layer's matrix re-solved for the inputs that stay: ``(out, len(columns))``."""
        return self._run(self._repair_job(layer, columns.tolist()))[VALUE]

    def repair_again(self, small: nn.Module, plan: Plan, kept: Kept) -> None:
        """Re-solve what reads pruned groups for the inputs that its predecessors now give; edits `small`."""
        pruned = [self.table.group(name) for name, prune in plan.groups.items() if prune.repair]
        readers = {item.name for group in pruned for item in group.consumers} - self._tied
        names = [name for name in kept.columns if name in readers]

        def compute() -> Tensors:
            with one_thread():
                return repair_in_sequence(small, self.model, names, kept, self.passes.examples)

        drawn = any(prune.score == "random" for prune in plan.groups.values())
        settings = replace(plan, layers={}, mask=None, distill=None, seed=plan.seed if drawn else 0).to_json()
        found = self.store.of("sequence", settings, {"model": self.passes.origin}, compute)
        for name, matrix in found.items():
            weight = weight_of(small.get_submodule(name))
            weight.copy_(matrix.reshape(weight.shape))

    def holds_weights(self, sha: str) -> bool:
        """Whether whole-model weights are there."""
        return self.store.get(f"weights-{sha}") is not None

    def mean_output(self, module: str, width: int) -> Tensor:
        """Mean output of a module over samples and positions, padding left out; float32 ``(width,)``.

        Raises:
            ModelError: the module is not called, or its output has another width.
            DataError: an output holds NaN or infinity.
        """
        mean = self.passes.output(module)["mean"].to(torch.float32)
        if len(mean) != width:
            raise ModelError(f"{module}: its output must have {width} features, but has {len(mean)}")
        return mean

    def factors(self, weight: Tensor, gram: Tensor, settings: Factorize) -> tuple[Tensor, Tensor]:
        """Two factors of a weight, from a decomposition that is stored for all ranks; see `factorize.factors`."""
        with one_thread():
            return factors_at(self._decomposed(weight, gram, settings), settings.rank, weight.dtype)

    def operated(self, weight: Tensor, gram: Tensor, mask: Mask) -> Tensor:
        """A matrix with the zeros of a mask of score "obs", stored; see `mask.masked`."""

        def compute() -> Tensors:
            with one_thread():
                return {VALUE: masked(weight, mask, gram, None, 0)}

        settings = {"sparsity": mask.sparsity, "n_m": mask.n_m}
        return self.store.of("surgeon", settings, {"weight": weight, "gram": gram}, compute)[VALUE]

    def fisher(self, layer: str) -> Tensor:
        """Mean squared gradient of each weight, shaped like the layer's matrix."""
        return self.passes.fisher(layer)

    def put_weights(self, state: Mapping[str, Tensor]) -> str:
        """Keep whole-model weights for plans that name them in `init`; returns their sha256. Never removed for room."""
        sha = digest_all(state)
        if self.store.get(f"weights-{sha}") is None:
            self.store.put(f"weights-{sha}", state)
        return sha

    def weights(self, sha: str) -> dict[str, Tensor]:
        """Weights that `put_weights` kept; raises `PlanError` when they are not there, or damaged."""
        found = self.store.get(f"weights-{sha}")
        if found is None:
            raise PlanError(f"init: the bank {self.folder} holds no whole weights {sha!r}")
        return dict(found)

    def errors(self, name: str, options: Iterable[Prune | Factorize], seed: int = 0) -> tuple[OptionError, ...]:
        """The exact error of some options of a group or layer, each by itself in the dense model.

        Raises:
            ModelError: the model has no such group or layer.
        """
        return tuple(self._option_error(name, option, seed) for option in options)

    def menu(
        self, options: Iterable[Plan], workers: int | None = None, say: Say | None = None
    ) -> tuple[OptionError, ...]:
        """The error of every option that some plans hold, group by group and layer by layer.

        Args:
            options: plans, such as one for each level of a search space.
            workers: as in `build`.
            say: as in `build`.
        """
        wanted = options_of(options)
        with Crew(self.store, self._resolve, workers, say) as crew:
            self._build(wanted, crew)
            crew.run([job for one in wanted for job in self._error_jobs(*one)])
        return tuple(self._option_error(*one) for one in wanted)

    def build(self, options: Iterable[Plan], workers: int | None = None, say: Say | None = None) -> None:
        """Compute ahead what these plans need of the bank, option by option; what is there is passed over.

        Args:
            options: plans, such as one for each level of a search space.
            workers: processes; 1 computes in this one, None chooses by the work that is left.
            say: is told how far it is.
        """
        with Crew(self.store, self._resolve, workers, say) as crew:
            self._build(options_of(options), crew)

    def _build(self, wanted: Sequence[Option], crew: Crew) -> None:
        for name, option, _seed in wanted:
            if isinstance(option, Prune):
                for stub in self.table.group(name).stubs:
                    self.passes.output(stub.name)
        for jobs_of in (self._first_jobs, self._repair_jobs):
            crew.run([job for one in wanted for job in jobs_of(*one)])

    @cached_property
    def _tied(self) -> frozenset[str]:
        """Layers that share a weight: it cannot be solved for two uses."""
        return frozenset(name for names in tied_weights(self.model) for name in names)

    def _run(self, job: Job) -> Tensors:
        return run_job(job, self.store, self._resolve)

    def _resolve(self, key: str) -> Tensor:
        """The tensor behind the key of an input: whoever makes a key leaves a way to it."""
        return self._sources[key]()

    def _first_jobs(self, name: str, option: Prune | Factorize, seed: int) -> Iterator[Job]:
        """Orders and decompositions: what needs no other result."""
        if isinstance(option, Factorize):
            yield self._decomposition_job(name, option)
        elif not self.table.group(name).removable and option.score != "given":
            yield self._order_job(self.table.group(name), option.score, seed)

    def _repair_jobs(self, name: str, option: Prune | Factorize, seed: int) -> Iterator[Job]:
        if isinstance(option, Prune) and option.repair:
            for layer, columns in self._columns(self.table.group(name), option, seed).items():
                if layer not in self._tied:
                    yield self._repair_job(layer, columns)

    def _error_jobs(self, name: str, option: Prune | Factorize, seed: int) -> Iterator[Job]:
        if isinstance(option, Prune):
            for layer, columns in self._columns(self.table.group(name), option, seed).items():
                yield self._error_job(layer, columns, option.repair and layer not in self._tied)

    def _columns(self, group: Group, prune: Prune, seed: int) -> dict[str, list[int]]:
        """Columns that stay in the matrix of each layer that reads a counted group; none for scores that are given."""
        if group.removable or prune.score == "given":
            return {}
        structures = self.kept(group, prune, seed).tolist()
        columns = {}
        for item in group.consumers:
            window = window_of(self.model.get_submodule(item.name))
            columns[item.name] = [c * window + i for c in item.positions(structures) for i in range(window)]
        return columns

    def _order_job(self, group: Group, score: str, seed: int) -> Job:
        inputs, windows, cost = {}, [], 0.0
        for number, item in enumerate(group.consumers):
            module = self.model.get_submodule(item.name)
            out, columns = matrix_of(module).shape
            inputs[f"weight{number}"] = self._weight_key(item.name)
            if score in BY_INPUT:
                inputs[f"gram{number}"] = self._moment_key(item.name)
            windows.append(window_of(module))
            cost += 1e-9 * columns * (columns + out) * group.size if score == "obs" else 0.0
        if score == "fisher":
            key = inputs["fisher"] = self.passes.key("structure-fisher", group.name)
            self._sources[key] = lambda: self.passes.structure_fisher(group)
        settings = {
            "score": score,
            "seed": seed_of(seed, group.name) if score == "random" else 0,
            "size": group.size,
            "slices": [asdict(item) for item in group.consumers],
            "windows": windows,
        }
        return Job("order", settings, inputs, cost)

    def _repair_job(self, layer: str, columns: Sequence[int]) -> Job:
        inputs = {"weight": self._weight_key(layer), "gram": self._moment_key(layer)}
        job = Job("repair", {"columns": list(columns)}, inputs, 3e-11 * len(columns) ** 3)
        self._sources[job.key] = lambda: self._run(job)[VALUE]
        return job

    def _error_job(self, layer: str, columns: Sequence[int], repair: bool) -> Job:
        inputs = {"weight": self._weight_key(layer), "gram": self._moment_key(layer)}
        if repair:
            inputs["solved"] = self._repair_job(layer, columns).key
        out, into = matrix_of(self.model.get_submodule(layer)).shape
        return Job("error", {"columns": list(columns)}, inputs, 4e-11 * out * into**2)

    def _decomposition_job(self, layer: str, settings: Factorize) -> Job:
        """Of a dense layer; `_decomposed` finds its result by the same key."""
        weight = weight_of(self.model.get_submodule(layer))
        job = decomposition_job(weight, self.gram(layer), settings)
        self._sources[job.inputs["weight"]] = lambda: weight
        self._sources[job.inputs["gram"]] = lambda: self.gram(layer)
        return job

    def _decomposed(self, weight: Tensor, gram: Tensor, settings: Factorize) -> Decomposition:
        job = decomposition_job(weight, gram, settings)
        inputs = {job.inputs["weight"]: weight, job.inputs["gram"]: gram}
        return Decomposition(**run_job(job, self.store, inputs.__getitem__))

    def _option_error(self, name: str, option: Prune | Factorize, seed: int) -> OptionError:
        if isinstance(option, Factorize):
            self.table.layer(name)
            made = self._decomposed(weight_of(self.model.get_submodule(name)), self.gram(name), option)
            return option_error(self.table, name, option, float(made.errors[option.rank]) ** 2, 1.0)
        group = self.table.group(name)
        if group.removable:
            return option_error(self.table, name, option, *self.passes.lost_outputs(group, option.repair))
        pairs = [self._run(job)[VALUE] for job in self._error_jobs(name, option, seed)]
        lost, whole = torch.stack(pairs).sum(dim=0).tolist()
        return option_error(self.table, name, option, lost, whole)

    def _weight_key(self, layer: str) -> str:
        """Key of a layer's matrix; raises `ModelError` where it holds NaN or infinity."""
        if layer not in self._weight_keys:
            matrix = matrix_of(self.model.get_submodule(layer))
            if not torch.isfinite(matrix).all():
                raise ModelError(f"layer {layer}: its weight holds NaN or infinity")
            self._weight_keys[layer] = input_key(matrix)
            self._sources[self._weight_keys[layer]] = lambda: matrix
        return self._weight_keys[layer]

    def _moment_key(self, layer: str) -> str:
        key = self.passes.key("moment", layer)
        self._sources[key] = lambda: self.gram(layer)
        return key
