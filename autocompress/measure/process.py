"""A measuring process as its owner sees it: what runs in it, and questions and answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autocompress.errors import MeasureError
from autocompress.runtimes import Device


@dataclass(frozen=True)
class Setting:
    """Where an artefact runs."""

    runtime: str
    threads: int
    device: Device = "cpu"

    def __str__(self) -> str:
        """Runtime and threads, or the device that is no CPU, as reports show them."""
        if self.device != "cpu":
            return f"{self.runtime} on {self.device}"
        return f"{self.runtime}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Contestant:
    """An artefact in a setting."""

    name: str
    path: Path
    setting: Setting


class Worker:
    """One measuring process; see `measure.worker`.

    Args:
        setting: what runs in it.
        cores: that it may use, in order of preference; all where they are fewer than its threads.
    """

    def __init__(self, setting: Setting, cores: Sequence[int] = ()) -> None:
        self.setting = setting
        command = [sys.executable, "-m", "autocompress.measure.worker", setting.runtime, str(setting.threads)]
        chosen = cores[: setting.threads] if len(cores) >= setting.threads else ()
        command += [setting.device, ",".join(map(str, chosen))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # NumPy's own threads have no work there
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer; raises `MeasureError` on any fault in the process."""
        to_worker, from_worker = self._process.stdin, self._process.stdout
        assert to_worker is not None
        assert from_worker is not None
        try:
            to_worker.write(json.dumps(request) + "\n")
            to_worker.flush()
            line = from_worker.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise MeasureError(f"the measuring process ({self.setting}) died with exit code {code} at {request}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(answer["error"])
        return answer

    def move(self, cores: Sequence[int]) -> None:
        """Run on the first of these cores from now on."""
        self.ask(do="move", cores=list(cores[: self.setting.threads]))

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        streams: tuple[IO[str] | None, ...] = (self._process.stdin, self._process.stdout)
        for stream in streams:
            with contextlib.suppress(BrokenPipeError):
                if stream:
                    stream.close()
        self._process.terminate()
        self._process.wait()
