"""One torch thread, and a task of each encoder family with its table and bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from autocompress.compress.bank import Bank
from autocompress.layers import LayerTable
from autocompress.tasks.task import Task
from tests.tiny import FAMILIES, bank_of, build, task_of


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Family:
    """A dense model of one family, ready to be shaped."""

    name: str
    task: Task
    table: LayerTable
    bank: Bank


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    task = task_of(build(request.param, layers=3))
    bank = bank_of(task, tmp_path_factory.mktemp("bank"))
    return Family(request.param, task, bank.table, bank)
