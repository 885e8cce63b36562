"""What a search finds out beside its candidates: what decides, how rungs foretell, what single choices lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from autocompress.found import SEARCH, Found, Importances, Loss, Share
from autocompress.plan import Plan
from autocompress.records import Trial, write_json
from autocompress.searching.atoms import Atoms
from autocompress.searching.controller import LEAST_TOLD, importances
from autocompress.searching.parts import Parts
from autocompress.searching.rungs import audits_of
from autocompress.searching.seen import ratio_of, structure_of
from autocompress.space import RECOVERY, SearchSpace, Values, Variable

#: Of more trials than this, the last ones say what decides.
MOST_TOLD = 100

#: Kind of a variable to the group that it is told with.
GROUPS: Mapping[str, str] = {
    "keep": "structure",
    "remove": "structure",
    "precision": "bits",
    "bits": "bits",
    "rank": "rank",
    "sparsity": "zeros",
    "learn": "recipe",
    **dict.fromkeys(RECOVERY, "recovery"),
}

ValuesOf = Callable[[Trial], Values | None]


def found_by(space: SearchSpace, trials: Sequence[Trial], maximize: bool, values: ValuesOf | None = None) -> Found:
    """What the trials of a search say.

    Args:
        space: with its recovery.
        trials: all of them.
        maximize: whether more quality is better.
        values: what a trial of a joint study was proposed with; None of a search in stages.
    """
    told: Iterator[Importances]
    if values is None:
        told = iter((recovery_importances(space, trials, maximize),) if space.steps else ())
    else:
        told = joint_importances(space, trials, values)
    return Found(tuple(told), tuple(audits_of(trials, maximize)))


def keep_found(found: Found, root: Path, say: Callable[[str], None]) -> None:
    """Write it into the run folder, and tell how far the rungs are to be trusted."""
    write_json(root / SEARCH, found.to_json())
    for audit in found.audits:
        say(audit.words())


def recovery_importances(space: SearchSpace, trials: Sequence[Trial], maximize: bool) -> Importances:
    """How much each setting of the recovery, its steps among them, decides of the quality that it gives.

    Qualities of different structures are not compared: the outcome is the quality above the mean of all recoveries of
    the same structure, and only structures that were recovered twice or more tell. The share of a setting is what it
    explains by itself of the variance of that, over the whole space of settings; a recovery that failed did as badly as
    the worst. It says how much the setting matters, not which value is best. Its doubt: settings were tried where they
    promised most, and most structures share those of an anchor, so that a share rests on few distinct settings; beside
    it stands what chance gives. Not told below `LEAST_TOLD` recoveries. What an earlier run was recovered with need not
    lie within this space, and is left out.
    """
    alike: dict[Plan, list[Trial]] = {}
    for trial in trials:
        if trial.rung >= 1 and trial.plan.distill is not None and trial.origin != "warm-start":
            alike.setdefault(structure_of(trial.plan), []).append(trial)
    variables = (*space.recovery, *(variable for variable in space.variables if variable.name == "steps"))
    tried: list[tuple[Values, float]] = []
    strata: list[int] = []
    for number, group in enumerate(alike.values()):
        known = {trial.fingerprint: _gain(trial, maximize) for trial in group if trial.measured}
        if len(known) < 2:
            continue
        worst, mean = min(known.values()), fmean(known.values())
        tried += [(_settings(space, trial), known.get(trial.fingerprint, worst) - mean) for trial in group]
        strata += [number] * len(group)
    return Importances("recovery", len(tried), LEAST_TOLD, _shares(variables, tried, strata, lambda name: name))


def joint_importances(space: SearchSpace, trials: Sequence[Trial], values: ValuesOf) -> Iterator[Importances]:
    """How much each group of variables decides of a joint study's latency and of its quality.

    The outcomes are the logarithm of the latency ratio, and the quality. A group's share is the sum of what its
    variables explain each by itself; what they do only together is in no share. Its doubt: a sampler tries most where
    it already found something good, and with many variables a forest of few trials finds little of what each does;
    beside the share stands what chance gives. Not told below `LEAST_TOLD` measured trials.
    """
    known = [(found, trial) for trial in trials if trial.measured and (found := values(trial)) is not None][-MOST_TOLD:]
    for of, outcome in (("latency", _log_ratio), ("quality", _quality)):
        tried = [(found, outcome(trial)) for found, trial in known]
        shares = _shares(space.variables, tried, [0] * len(tried), lambda name: GROUPS[name.partition(":")[0]])
        yield Importances(of, len(tried), LEAST_TOLD, shares)


def _shares(
    variables: Sequence[Variable],
    tried: Sequence[tuple[Values, float]],
    strata: Sequence[int],
    group_of: Callable[[str], str],
) -> tuple[Share, ...]:
    """Shares by group, the largest first; none of too few, or of one variable alone."""
    if len(tried) < LEAST_TOLD or len(variables) < 2:
        return ()
    sums: dict[str, list[float]] = {}
    for name, shares in importances(variables, tried, strata).items():
        known = sums.setdefault(group_of(name), [0.0] * len(shares))
        sums[group_of(name)] = [before + share for before, share in zip(known, shares, strict=True)]
    found = [Share(name, min(1.0, shares[0]), min(1.0, max(shares[1:]))) for name, shares in sums.items()]
    return tuple(sorted(found, key=lambda one: -one.share))


def _settings(space: SearchSpace, trial: Trial) -> Values:
    """The settings of a recovery as values of the space's variables."""
    distill = trial.plan.distill
    assert distill is not None
    values: Values = {variable.name: getattr(distill, variable.name) for variable in space.recovery}
    steps = space.by_name.get("steps")
    return values if steps is None else {**values, "steps": steps.levels.index(float(distill.steps))}


def _gain(trial: Trial, maximize: bool) -> float:
    return _quality(trial) * (1 if maximize else -1)


def _quality(trial: Trial) -> float:
    assert trial.quality is not None
    return trial.quality


def _log_ratio(trial: Trial) -> float:
    return math.log(ratio_of(trial))


def losses_of(space: SearchSpace, parts: Parts, atoms: Atoms) -> list[Loss]:
    """What each single choice that the program decides on loses, block by block, heavy to light."""
    found = []
    for variable in space.structure:
        kind, _, scope = variable.name.partition(":")
        for level, words in enumerate(variable.levels) if variable.name in parts.chosen else ():
            if level != parts.base[variable.name]:
                kl, measured = atoms.kl[variable.name][level], (variable.name, level) in atoms.known
                found.append(Loss(*_choice(kind, scope, words, space), kl, measured))
    return found


def _choice(kind: str, scope: str, level: float | str, space: SearchSpace) -> tuple[str, str, str]:
    """Scope, kind and level of a choice in the words of `Loss`."""
    if kind == "keep":
        group = space.table.group(scope)
        return group.block or scope, group.kind, f"{100 * float(level):.4g} %"
    if kind == "remove":
        group = space.table.group(scope)
        return group.block or scope, kind, group.kind
    place = _place(scope, space)
    if kind == "rank":
        return place, kind, f"{100 * float(level):.4g} %"
    return place, kind, f"{float(level):.0f} bits" if kind == "bits" else str(level)


def _place(scope: str, space: SearchSpace) -> str:
    """A block, a layer, or how many layers of one kind a rule holds together."""
    layers = [layer for layer in space.table.layers if layer.name in space.choices]
    layers = [layer for layer in layers if space.choices[layer.name].scope == scope]
    if len(layers) == 1:
        return layers[0].name
    if scope.startswith("rule "):
        return f"{len(layers)} {' and '.join(sorted({layer.kind for layer in layers}))} layers"
    return scope.partition(" (rule ")[0]
