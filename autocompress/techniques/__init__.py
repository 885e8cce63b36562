"""What can be done to a model: the catalogue of techniques, with settings, papers and examples."""

from __future__ import annotations

from autocompress.errors import ConfigError, near
from autocompress.techniques.catalogue import TECHNIQUES
from autocompress.techniques.technique import Technique

__all__ = ["TECHNIQUES", "Technique", "technique"]


def technique(name: str) -> Technique:
    """A technique by its id; raises `ConfigError` with near names."""
    found = {item.id: item for item in TECHNIQUES}
    if name not in found:
        raise ConfigError(f"no technique is called {name!r}{near(name, found)}")
    return found[name]
