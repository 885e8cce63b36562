"""The measuring process: loads artefacts of one runtime and runs blocks of queries on request.

Started as ``python -m autocompress.measure.worker RUNTIME THREADS``; talks JSON lines over stdin and stdout.
Imports no torch, so that nothing else of ours runs in it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from autocompress.errors import AutocompressError
from autocompress.runtimes import Session, open_session


def _load_inputs(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _warm_up(session: Session, inputs: dict[str, Any], seconds: float) -> float:
    """Run for a while, by time and not by count; returns the last seconds per query."""
    end = time.perf_counter() + seconds
    last = 0.0
    while True:
        start = time.perf_counter()
        session.run(inputs)
        last = time.perf_counter() - start
        if time.perf_counter() >= end:
            return last


def _block(session: Session, inputs: dict[str, Any], queries: int) -> list[float]:
    session.run(inputs)  # wakes threads and caches that the other contestants put to sleep
    times = []
    for _ in range(queries):
        start = time.perf_counter()
        session.run(inputs)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Answer requests until stdin ends."""
    runtime, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a runtime prints must not look like an answer
    sessions: dict[str, tuple[Session, dict[str, Any]]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request, sessions, runtime, threads)
        except AutocompressError as fault:
            answer = {"error": str(fault)}
        except Exception as fault:  # the runtime's own errors, whatever their class
            answer = {"error": f"{type(fault).__name__}: {fault}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(
    request: dict[str, Any], sessions: dict[str, tuple[Session, dict[str, Any]]], runtime: str, threads: int
) -> dict[str, Any]:
    key = request["key"]
    if request["do"] == "open":
        start = time.perf_counter()
        session = open_session(request["path"], runtime, threads)
        loaded = time.perf_counter() - start
        inputs = _load_inputs(request["inputs"])
        sessions[key] = (session, inputs)
        return {"load_s": loaded, "query_s": _warm_up(session, inputs, request["warmup_seconds"])}
    if request["do"] == "block":
        return {"times": _block(*sessions[key], request["queries"])}
    sessions.pop(key, None)
    return {}


if __name__ == "__main__":
    main()
