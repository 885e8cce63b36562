"""A run's front as other devices time it: the records of `measured.json`. Plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigError
from autocompress.records import Latency, latency_from_json

#: Where a run folder keeps it.
MEASURED = "measured.json"


@dataclass(frozen=True)
class Elsewhere:
    """A front's latencies on one device.

    Attributes:
        name: profile and processor.
        profile, environment: resolved, as plain data.
        best_dense: the setting that is fastest for the dense model there.
        latencies: fingerprint to what was found.
    """

    name: str
    profile: dict[str, Any]
    environment: dict[str, Any]
    best_dense: str
    latencies: dict[str, Latency]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `read_elsewhere` reads back."""
        return {**asdict(self), "latencies": {name: asdict(found) for name, found in self.latencies.items()}}


def read_elsewhere(path: Path) -> tuple[Elsewhere, ...]:
    """The devices of a `measured.json`; none where there is no file.

    Raises:
        ConfigError: the file is no such file.
    """
    if not path.is_file():
        return ()
    try:
        devices = json.loads(path.read_text(encoding="utf-8"))["devices"]
        return tuple(
            Elsewhere(**{**one, "latencies": {k: latency_from_json(v) for k, v in one["latencies"].items()}})
            for one in devices
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as fault:
        raise ConfigError(f"{path}: not written by autocompress measure ({type(fault).__name__}: {fault})") from None
