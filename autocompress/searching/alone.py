"""One stage of a staged search alone, in the folder of its run: which ones there are, and what each needs there."""

from __future__ import annotations

from pathlib import Path

from autocompress.errors import ConfigError, near
from autocompress.records import Trial
from autocompress.run import Run
from autocompress.searching.seeds import REFERENCES
from autocompress.space import SearchSpace

#: Stages that can be run alone, in the order in which a search goes through them.
ALONE = ("losses", "solve", "refine", "recover", "finalists")

#: Files of the bank that hold what single choices lose.
LOSSES = ("loss-*", "sensitivity-*")


def check_stage_name(stage: str | None) -> None:
    """Raise `ConfigError` for a stage that there is not."""
    if stage is not None and stage not in ALONE:
        raise ConfigError(f"--stage {stage!r} is unknown{near(stage, ALONE)}")


def check_stage(stage: str, root: Path, space: SearchSpace) -> None:
    """Refuse a stage that cannot be run alone in a folder.

    Raises:
        ConfigError: names what is missing, and what to run first.
    """
    named, strategy = f"--stage {stage}", space.rules.strategy
    if strategy != "staged":
        raise ConfigError(f"{named}: only the strategy 'staged' has stages, but this run's is {strategy!r}")
    if stage == "recover" and not space.steps:
        raise ConfigError(f"{named}: this space has no recovery; give its distill.steps a level above 0")
    if stage in ("losses", "solve", "refine") and not space.structure:
        raise ConfigError(f"{named}: this space chooses nothing but the recovery; run --stage recover")
    run = Run(root)
    started = all((root / name).is_file() for name in ("experiment.yaml", "probe.json"))
    measured = run.front.measured if started else ()
    if not any(trial.origin == "dense" for trial in measured):
        raise ConfigError(f"{named}: {root} holds no search that has measured dense; search without --stage first")
    first = _missing(stage, root, measured)
    if first:
        raise ConfigError(f"{named}: {root} {first[0]}; run --stage {first[1]} first")


def _missing(stage: str, root: Path, measured: tuple[Trial, ...]) -> tuple[str, str] | None:
    """What a stage lacks, and the stage that gives it."""
    if stage == "solve" and not any(next((root / "bank").glob(name), None) for name in LOSSES):
        return "holds no losses of single choices", "losses"
    if stage in ("refine", "recover") and not any(t.rung == 0 and t.origin not in REFERENCES for t in measured):
        return "holds no measured candidate without recovery", "solve"
    return None
