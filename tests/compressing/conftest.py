"""One torch thread, and a task of each encoder family with its table and bank."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from autocompress.compressing.bank import Bank
from autocompress.layers import LayerTable
from autocompress.tasks.task import Task
from tests.tiny import FAMILIES, _one_thread, bank_of, build, task_of  # noqa: F401  (a fixture)


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
