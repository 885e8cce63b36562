"""Every error autocompress raises on purpose.

    AutocompressError
    ├── ConfigError          a setting is wrong: flag, YAML key, environment
    │   ├── PlanError        a plan is illegal, alone or for this model
    │   ├── SpaceError       a search space is wrong or empty for this model and profile
    │   └── ProfileError     a hardware profile is wrong
    ├── DataError            the data cannot be used as it is
    ├── ModelError           the model cannot be loaded or holds nothing to compress
    ├── BudgetError          no candidate can meet the budget; carries the reachable range
    ├── NothingFitsError     a finished run holds no model that fits; carries the nearest miss
    ├── RunMismatchError     the run folder belongs to another experiment
    ├── ExportError          an artefact could not be made, or disagrees with its torch model
    ├── MeasureError         a latency could not be measured
    └── StorageError         the disk refused a write

A message names the file or flag, the key, the value, and what would be right.
The command line turns these into exit code 2 (`NothingFitsError`: 3) and one line on stderr.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutocompressError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 2


class ConfigError(AutocompressError):
    """A setting is wrong."""


class PlanError(ConfigError):
    """A plan is illegal, alone or for the model it is applied to."""


class SpaceError(ConfigError):
    """A search space is wrong, or leaves nothing to choose."""


class ProfileError(ConfigError):
    """A hardware profile is wrong."""


class DataError(AutocompressError):
    """The data cannot be used as it is."""


class ModelError(AutocompressError):
    """The model cannot be loaded, or holds nothing to compress."""


class BudgetError(AutocompressError):
    """No candidate can meet the budget."""


class NothingFitsError(AutocompressError):
    """A finished run holds no model that fits the request."""

    exit_code = 3


class RunMismatchError(AutocompressError):
    """The run folder belongs to another experiment."""


class ExportError(AutocompressError):
    """An artefact could not be made, or disagrees with its torch model."""


class MeasureError(AutocompressError):
    """A latency could not be measured."""


class StorageError(AutocompressError):
    """The disk refused a write."""


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """A hint such as ``; did you mean 'a' or 'b'?``, or the known names when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
    return f"; known: {shown}" if known else ""
