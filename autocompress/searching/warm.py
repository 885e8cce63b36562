"""A warm start: the front of an earlier run on the same model, as candidates of this one."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.errors import AutocompressError, ConfigError
from autocompress.hardware import HardwareProfile
from autocompress.layers import LayerTable
from autocompress.plan import PRECISIONS, LayerPlan, Plan, Precision
from autocompress.run import Run
from autocompress.searching.seen import structure_of
from autocompress.space import RECOVERY, SearchSpace, Values, Variable

#: Stands for the rank of a layer that is whole.
WHOLE = 10**6

#: In this order each kind of choice is read from a plan, since the later ones depend on the earlier ones.
KINDS = ("learn", "remove", "keep", "sparsity:all layers", "precision", "bits", "rank", "sparsity")

#: Settings of a task by which two runs are told to be about the same model.
SOURCE = ("task", "model", "data")


def read_warm_start(
    folder: str | Path, root: Path, table: LayerTable, asked: Mapping[str, Any], resolved: Mapping[str, Any]
) -> tuple[Plan, ...]:
    """The front of an earlier run, without recovery first, each part fast to slow.

    Args:
        folder: of the earlier run.
        root: of this one.
        table: of this one's model.
        asked: of this run, as its `experiment.yaml` tells it.
        resolved: the same, of what it came to.

    Raises:
        ConfigError: it is no run, this run itself, of another model, or has measured nothing.
    """
    named = f"--warm-start {folder}"
    if not (Path(folder) / "experiment.yaml").is_file():
        raise ConfigError(f"{named}: no run there (it holds no experiment.yaml); give the folder of an earlier search")
    if Path(folder).resolve() == root.resolve():
        raise ConfigError(f"{named}: is this very run, which goes on by itself; leave --warm-start out")
    run = Run(Path(folder))
    try:
        theirs, front, before = run.table, run.front, run.experiment
    except KeyError as fault:
        raise ConfigError(f"{named}: is no whole run folder ({fault} is missing)") from None
    except AutocompressError as fault:
        raise ConfigError(f"{named}: {fault}") from None
    another = _other_layers(theirs, table) or _other_identity(before, asked, resolved)
    if another:
        raise ConfigError(f"{named}: is of another model: {another}; give a run that compressed this one")
    if not front.measured:
        raise ConfigError(f"{named}: has measured no candidate yet; let it search first, or leave --warm-start out")
    found = [trial.plan for trial in front.points or front.all_nondominated()]
    return tuple(sorted(found, key=lambda plan: plan.distill is not None))


def _other_layers(theirs: LayerTable, ours: LayerTable) -> str:
    """What differs between the layers and groups of two models, in words; "" for nothing."""
    for what, before, now in (
        ("layer", {la.name: la.weight_shape for la in theirs.layers}, {la.name: la.weight_shape for la in ours.layers}),
        ("group", {g.name: g.size for g in theirs.groups}, {g.name: g.size for g in ours.groups}),
    ):
        for name in [*now, *before]:
            if before.get(name) != now.get(name):
                sizes = (f"of {side[name]}" if name in side else "missing" for side in (before, now))
                return f"{what} {name} is {next(sizes)} there and {next(sizes)} here"
    return ""


def _other_identity(before: Mapping[str, Any], asked: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """What shows that weights or data differ, in words; "" for nothing.

    Where the profiles cut texts at different lengths, the data differ by that alone, and only names can be compared.
    """
    there = before["resolved"]
    if there["identity"] == resolved["identity"]:
        return ""
    lengths = [each["hardware"].get("workload", {}).get("sequence_length") for each in (there, resolved)]
    if lengths[0] == lengths[1]:
        return "the fingerprint of its weights and data differs"
    changed = [key for key in SOURCE if before.get(key) != asked.get(key)]
    return ", ".join(f"{key} {before.get(key)!r} there and {asked.get(key)!r} here" for key in changed)


def prepared(
    plans: Sequence[Plan],
    table: LayerTable,
    profile: HardwareProfile,
    broken: Collection[Precision],
    say: Callable[[str], None],
) -> tuple[Plan, ...]:
    """The plans as this device can run them: without precisions that have no kernel here, which is said.

    Args:
        plans: of the earlier run.
        table: of this one's model.
        profile: of this one.
        broken: precisions that the probe found not to run.
        say: is told what was left out.
    """
    found: dict[Plan, None] = {}
    lost: dict[str, int] = {}
    for plan in plans:
        gone = {
            lp.precision
            for name, lp in plan.layers.items()
            if lp.precision in broken or lp.precision not in profile.precisions.get(table.layer(name).kind, ("fp32",))
        } - {"fp32"}
        for precision in gone:
            lost[precision] = lost.get(precision, 0) + 1
        found[_without(plan, gone) if gone else plan] = None
    for name, count in lost.items():
        say(f"warm start: {name} has no kernel on profile {profile.name!r}; {count} of {len(plans)} go without it")
    learned = [plan for plan in found if plan.init is None]
    if len(learned) < len(found):
        say(f"warm start: {len(found) - len(learned)} left out, which need weights that the earlier run learned")
    return tuple(learned)


def _without(plan: Plan, precisions: Collection[str]) -> Plan:
    layers = {
        name: replace(lp, quantize=None) if lp.precision in precisions else lp for name, lp in plan.layers.items()
    }
    distill = plan.distill
    if distill and distill.fake_quantize and not any(lp.quantize for lp in layers.values()):
        distill = replace(distill, fake_quantize=False)
    return replace(plan, layers=layers, distill=distill)


def rung_of(plan: Plan, space: SearchSpace) -> int:
    """0 without recovery; otherwise the last rung of the space that takes no more steps, and at least the first."""
    return max(1, bisect.bisect_right(space.steps, plan.distill.steps)) if plan.distill else 0


def offered(plans: Sequence[Plan], space: SearchSpace, say: Callable[[str], None]) -> list[Values]:
    """The values of those plans whose structure a space has; their recoveries are moved to what it offers, as said."""
    found, moved = [], 0
    for plan in plans:
        values = encode(plan, space)
        made = space.decode(values, plan.seed)
        if structure_of(made) == structure_of(plan):
            found.append(values)
            moved += made != plan
    if len(found) < len(plans):
        say(f"warm start: {len(plans) - len(found)} of {len(plans)} left out, which this space cannot express")
    if moved:
        say(f"warm start: {moved} start with the nearest recovery that this space has")
    return found


def encode(plan: Plan, space: SearchSpace) -> Values:
    """The values of a space whose plan is nearest to a given one: the very same plan, where the space can say it."""
    values = space.uniform()
    for kind in KINDS:
        alike = [variable for variable in space.structure if _kind(variable) == kind]
        most = max((len(variable.levels) for variable in alike), default=0)
        tried = [{v.name: min(level, len(v.levels) - 1) for v in alike} for level in range(most)]
        plans = [space.decode({**values, **levels}) for levels in tried]
        for variable in alike:
            off = [_distance(plans[level], plan, variable, level, space) for level in range(len(variable.levels))]
            values[variable.name] = off.index(min(off))
    for variable in space.variables:
        if variable.name in RECOVERY and plan.distill is not None:
            wanted = float(getattr(plan.distill, variable.name))
            if variable.levels:
                off = [abs(float(level) - wanted) for level in variable.levels]
                values[variable.name] = off.index(min(off))
            else:
                values[variable.name] = min(max(wanted, variable.low), variable.high)
    return values


def _kind(variable: Variable) -> str:
    return variable.name if variable.name == "sparsity:all layers" else variable.name.partition(":")[0]


def _distance(tried: Plan, plan: Plan, variable: Variable, level: int, space: SearchSpace) -> float:
    """How far what one variable decides at a level, which `tried` has, is from the plan."""
    kind, scope = _kind(variable), variable.name.partition(":")[2]
    if kind == "learn":
        return float(space.rules.recipes[level] != plan.learn)
    if kind == "remove":
        return float(level != (scope in plan.groups))
    if kind == "keep":
        size = space.table.group(scope).size
        kept = [one.groups[scope].keep if scope in one.groups else size for one in (tried, plan)]
        return abs(kept[0] - kept[1])
    if kind == "sparsity:all layers":
        zeros = [one.mask.sparsity if one.mask else 0.0 for one in (tried, plan)]
        return abs(zeros[0] - zeros[1])
    names = [name for name, choice in space.choices.items() if choice.scope == scope]
    empty = LayerPlan()
    return sum(
        abs(_amount(kind, tried.layers.get(name, empty)) - _amount(kind, plan.layers.get(name, empty)))
        for name in names
    )


def _amount(kind: str, layer: LayerPlan) -> float:
    """How much of a kind of choice a layer has, as a number."""
    if kind == "precision":
        return PRECISIONS.index(layer.precision)
    if kind == "bits":
        return layer.quantize.bits if layer.quantize else 0
    if kind == "rank":
        return layer.factorize.rank if layer.factorize else WHOLE
    if layer.mask is None:
        return 0.0
    return layer.mask.sparsity if layer.mask.sparsity is not None else 1 - layer.mask.n_m[0] / layer.mask.n_m[1]  # type: ignore[index]
