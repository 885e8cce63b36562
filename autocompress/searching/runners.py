"""Which runner a search gets: this process, several of this machine, or a Ray cluster."""

from __future__ import annotations

from autocompress.searching.local_runner import LocalRunner, check_workers
from autocompress.searching.runner import InProcess, Runner
from autocompress.workshop import Workshop


def check_runner(workers: int | None, ray: str | None) -> None:
    """Raise `ConfigError` for a number of workers that cannot be, or where Ray is asked for and not installed."""
    if ray is not None:
        from autocompress.searching.ray_runner import check_ray

        check_ray(ray, workers)
    elif workers is not None:
        check_workers(workers)


def open_runner(shop: Workshop, workers: int | None, ray: str | None) -> Runner:
    """Where candidates are evaluated."""
    if ray is not None:
        from autocompress.searching.ray_runner import RayRunner

        return RayRunner(shop, ray, workers)
    return LocalRunner(shop, workers) if workers and workers > 1 else InProcess(shop)
