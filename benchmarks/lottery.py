"""Lottery tickets on the digits demo: test accuracy against the share of weights that are left.

    python benchmarks/lottery.py [--seeds 3] [--steps 400] [--threads 2] [--show]

Each round trains, removes the least weights of the whole model, and rewinds; the control trains the same masks from
fresh random weights for as many steps. Adds lines to benchmarks/results/lottery.jsonl.
"""

from __future__ import annotations

import functools

import common

from autocompress.compressing.mask import hold
from autocompress.learn.training import Course, train
from autocompress.learn.untrained import untrained
from autocompress.learn.zeros import find_ticket
from autocompress.plan import LotteryTicket, Plan

ROUNDS = 10
LEFT = 0.04


def left(masks) -> float:
    if not masks:
        return 1.0
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def ticket(task, table, steps: int, seed: int) -> dict:
    recipe = LotteryTicket(1 - LEFT, ROUNDS, steps, rewind_steps=steps // 20)
    found = {"left": [], "ticket": [], "reinitialised": []}

    def each(model, masks) -> None:
        found["left"].append(left(masks))
        found["ticket"].append(common.quality(model, task, task.test))
        model.train()
        fresh = untrained(task.source, seed + 1000)
        hold(fresh, masks)
        plain = lambda logits, _inputs, targets: task.loss(logits, targets)  # noqa: E731
        train(fresh, task, Course(steps, recipe.learning_rate, seed), plain, masks=masks)
        found["reinitialised"].append(common.quality(fresh, task, task.test))

    find_ticket(task, Plan(learn=recipe, seed=seed), table, each)
    return found


def main() -> None:
    chosen = common.options(__doc__, seeds=3, steps=400)
    sheet = common.Sheet("lottery")
    if not chosen.show:
        task = common.load("digits")
        table = common.table_of(task)
        for seed in range(chosen.seeds):
            work = functools.partial(ticket, task, table, chosen.steps, seed)
            sheet.run(work, model="digits", steps=chosen.steps, seed=seed)
    rows = []
    for number in range(ROUNDS + 1):
        lines = [line["values"] for line in sheet.lines]
        columns = [[values[name][number] for values in lines] for name in ("left", "ticket", "reinitialised")]
        rows.append([common.spread(column) for column in columns])
    common.show("digits, test accuracy in %", ["weights left, %", "ticket", "same mask, fresh weights"], rows)


if __name__ == "__main__":
    main()
