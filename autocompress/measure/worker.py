"""The measuring process: loads artefacts of one runtime and runs blocks of queries on request.

Started as ``python -m autocompress.measure.worker RUNTIME THREADS DEVICE CORES``; talks JSON lines over stdin and
stdout. Imports no torch unless the runtime is torch's, so that nothing else of ours runs in it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autocompress.errors import AutocompressError
from autocompress.measure.decoding import Prefill, decode_query
from autocompress.measure.energy import open_meter
from autocompress.measure.queries import Query, read_queries
from autocompress.measure.usage import Waiting, busiest, peak_memory_bytes, processor_times, stay_on
from autocompress.runtimes import Device, Session, open_session

Answer = dict[str, Any]


@dataclass
class Loaded:
    """An open artefact, its queries, and which threads computed while it warmed up.

    Attributes:
        load_s: seconds that loading took, compiling included.
        decode: prompt length and new tokens of a query that generates; None where a query is one run.
    """

    session: Session
    load_s: float
    queries: list[Query]
    decode: tuple[int, int] | None
    busy: list[int] = field(default_factory=list)

    def run(self, number: int) -> tuple[float, list[float]] | None:
        """Answer one query, of those in turn; a decoder's gives seconds of its prompt and of each token."""
        query = self.queries[number % len(self.queries)]
        if self.decode:
            ported: Any = self.session
            return decode_query(ported, query, *self.decode)
        self.session.run(query)
        return None


@dataclass
class Room:
    """What the process is, and what is open in it."""

    runtime: str
    threads: int
    device: Device
    cores: list[int]
    open: dict[str, Loaded] = field(default_factory=dict)

    def settle(self) -> None:
        """Give each computing thread a core of its own."""
        pairs = (zip(item.busy, self.cores, strict=False) for item in self.open.values())
        alone = {thread: core for pair in pairs for thread, core in pair}
        stay_on(self.cores, alone if self.threads > 1 else {})


def _load(room: Room, request: Answer) -> Loaded:
    queries = read_queries(request["inputs"])
    start = time.perf_counter()
    decode = (request["prompt_length"], request["new_tokens"]) if request.get("new_tokens") else None
    first = queries[0] if decode is None else None
    session = open_session(request["path"], room.runtime, room.threads, room.device, first)
    load_s = time.perf_counter() - start
    return Loaded(session, load_s, queries, decode)


def _open(room: Room, request: Answer) -> Answer:
    item = _load(room, request)
    before = processor_times()
    _warm_up(item, request["warmup_seconds"] / 2)
    item.busy = busiest(before, processor_times(), room.threads, threading.get_native_id())
    room.open[request["key"]] = item
    room.settle()
    query_s = _warm_up(item, request["warmup_seconds"] / 2)
    return {"load_s": item.load_s, "query_s": query_s, "inputs": len(item.queries)}


def _warm_up(item: Loaded, seconds: float) -> float:
    """Run for a while, by time and not by count, in whole passes; returns seconds per query of the fastest pass."""
    now = time.perf_counter()
    end, least = now + seconds, float("inf")
    while True:
        start = now
        for number in range(len(item.queries)):
            item.run(number)
        now = time.perf_counter()
        least = min(least, (now - start) / len(item.queries))
        if now >= end:
            return least


def _block(room: Room, request: Answer) -> Answer:
    """Queries with the seconds of each, and how long its threads stood in line for a core."""
    item = room.open[request["key"]]
    waiting = Waiting(room.threads)
    times, waited, steps = [], [], []
    item.run(0)  # wakes threads and caches that the other contestants put to sleep
    gc.disable()
    waiting.lap()
    for number in range(request["queries"]):
        start = time.perf_counter()
        step = item.run(number)
        times.append(time.perf_counter() - start)
        waited.append(waiting.lap())
        steps.append(step)
    gc.enable()
    waiting.close()
    answer: Answer = {"times": times, "waited": waited if waiting.known else []}
    return {**answer, "steps": steps} if item.decode else answer


def _stream(room: Room, request: Answer) -> Answer:
    """Queries back to back, with nothing between them: what throughput, energy and the far tail are told from."""
    item = room.open[request["key"]]
    waiting, meter, times = Waiting(room.threads), open_meter(room.device), []
    item.run(0)
    begun = meter.joules() if meter else 0.0
    waiting.lap()
    start = last = time.perf_counter()
    for number in range(request["queries"]):
        item.run(number)
        now = time.perf_counter()
        times.append(now - last)
        last = now
    answer: Answer = {"times": times, "seconds": last - start, "waited": waiting.lap()}
    waiting.close()
    joules = meter.joules() - begun if meter else 0.0
    return {**answer, "joules": joules or None, "energy_source": meter.source if meter and joules else None}


def _memory(room: Room, request: Answer) -> Answer:
    _load(room, request).run(0)
    return {"peak_memory_bytes": peak_memory_bytes()}


def _outputs(room: Room, request: Answer) -> Answer:
    """Write the first output for the first query, so that another process can compare."""
    item = room.open[request["key"]]
    np.save(request["path"], Prefill(item.session).run(item.queries[0])[0], allow_pickle=False)
    return {}


def _move(room: Room, request: Answer) -> Answer:
    room.cores = request["cores"]
    room.settle()
    return {}


def _close(room: Room, request: Answer) -> Answer:
    room.open.pop(request["key"], None)
    return {}


_ANSWERS: dict[str, Callable[[Room, Answer], Answer]] = {
    "open": _open,
    "block": _block,
    "stream": _stream,
    "memory": _memory,
    "outputs": _outputs,
    "move": _move,
    "close": _close,
}


def _answer(request: Answer, room: Room) -> Answer:
    return _ANSWERS[request["do"]](room, request)


def main() -> None:
    """Answer requests until stdin ends."""
    runtime, threads, device, cores = sys.argv[1:5]
    room = Room(runtime, int(threads), "cuda" if device == "cuda" else "cpu", [int(c) for c in cores.split(",") if c])
    room.settle()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a runtime prints must not look like an answer
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), room)
        except AutocompressError as fault:
            answer = {"error": str(fault)}
        except Exception as fault:  # the runtime's own errors, whatever their class
            answer = {"error": f"{type(fault).__name__}: {fault}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
