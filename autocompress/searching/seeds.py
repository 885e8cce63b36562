"""What is evaluated whatever a search finds: the references, and the first proposals of `strategy: joint`."""

from __future__ import annotations

from collections.abc import Iterator

from autocompress.plan import Plan, Precision
from autocompress.records import Origin
from autocompress.searching.probe import Probe
from autocompress.space import SearchSpace, Values

#: Origins of what is evaluated before the strategy is asked.
REFERENCES: tuple[Origin, ...] = ("dense", "uniform-int8")

#: Precisions of a uniform int8 reference.
INT8: tuple[Precision, ...] = ("int8", "int8-dynamic")

#: Uniform levels that are also tried without recovery: light ones may need none.
UNRECOVERED = 2


def references(space: SearchSpace, probe: Probe) -> tuple[tuple[Origin, Plan], ...]:
    """Dense, and every layer in int8: in the kinds that the search goes on with, else in the fastest one measured.

    `space` is the one before the probe dropped anything.
    """
    measured = [f for f in probe.precisions if f.precision in INT8 and f.ratio is not None]
    facts = [f for f in measured if f.kept] or sorted(measured, key=lambda f: f.ratio or 0.0)[:1]
    uniform = [space.decode(space.uniform(precision=fact.precision)) for fact in facts]
    return (("dense", Plan()), *(("uniform-int8", Plan(layers=plan.layers)) for plan in uniform))


def seeds(space: SearchSpace, probe: Probe) -> Iterator[tuple[Origin, Values]]:
    """What the controller proposes first: dense, uniform int8, uniform levels, and halves of the blocks removed.

    A space that chooses nothing but how to teach starts with no recovery, its default one, and one with the least λ.
    """
    best: Precision = probe.fastest_precision
    if space.decode(space.uniform()) == Plan():
        yield "dense", space.uniform()
    for precision in INT8:
        if precision not in probe.dropped and space.uniform(precision=precision) != space.uniform():
            yield "uniform-int8", space.uniform(precision=precision)
    rules = space.rules
    shares = _shares(space)
    blocks = space.table.blocks
    for place, share in enumerate(shares):
        if place < UNRECOVERED:
            yield "uniform", space.uniform(keep=share, precision=best)
        yield "uniform", space.uniform(keep=share, precision=best, recover=True)
    if rules.blocks.remove and len(blocks) > 1:
        for removed in (blocks[(len(blocks) + 1) // 2 :], blocks[1::2]):
            yield "seed", space.uniform(precision=best, removed=removed, recover=True)
            for share in shares[1::2]:
                yield "seed", space.uniform(keep=share, precision=best, removed=removed, recover=True)
    if not shares:
        yield from _other_seeds(space, best)


def _shares(space: SearchSpace) -> list[float]:
    """Levels of all structures but the hidden width, full ones left out, the largest first."""
    names = {f"keep:{group.name}" for group in space.table.groups if not group.removable and group.kind != "hidden"}
    levels = {float(level) for v in space.variables if v.name in names for level in v.levels}
    return sorted(levels - {1.0}, reverse=True)


def _other_seeds(space: SearchSpace, best: Precision) -> Iterator[tuple[Origin, Values]]:
    """Uniform ranks, recipes, and ways to teach, of a space without structures to choose."""
    rules = space.rules
    for rank in sorted({r for rule in rules.layers for r in rule.rank} - {1.0}, reverse=True):
        yield "uniform", space.uniform(rank=rank, precision=best, recover=True)
    for number in range(1, len(rules.learn)):
        yield "uniform", {**space.uniform(precision=best, recover=True), "learn": number}
    if not space.structure:
        taught = space.uniform(recover=True)
        least = {v.name: v.low for v in space.variables if v.name == "soft_weight"}
        yield from (("uniform", space.uniform()), ("uniform", taught), ("seed", {**taught, **least}))
