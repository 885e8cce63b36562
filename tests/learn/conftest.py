"""One torch thread."""

from __future__ import annotations

from tests.tiny import _one_thread  # noqa: F401  (a fixture)
