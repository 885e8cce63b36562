"""Measuring: what is timed, how, and in which process."""
