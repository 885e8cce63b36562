"""One torch thread for every test here."""

from tests.tiny import _one_thread  # noqa: F401  (a fixture)
