"""What the terminal shows: progress while searching, and the front as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autocompress.front import Front
from autocompress.records import Trial
from autocompress.report.survivors import SurvivorsInfo
from autocompress.searching.status import Status
from autocompress.techniques import Technique

if TYPE_CHECKING:
    from autocompress.toolbox import Compressed  # with torch, which `front` and `report` do without

#: Candidates between two status lines where there is no terminal to keep one.
EVERY = 5


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    """A watcher that prints a line per candidate and keeps a status line below them.

    Where the output is no terminal, the status is printed every `EVERY` candidates instead.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._status: Status | None = None

    def __enter__(self) -> Progress:
        """Start the status line."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the status line."""
        if self._live.is_started:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a fact."""
        self.console.print(f"  {escape(text)}", soft_wrap=True)

    def update(self, status: Status) -> None:
        """Show where the search stands."""
        new_stage = self._status is None or self._status.stage != status.stage
        self._status = status
        if new_stage:
            self.console.print(f"[bold]{status.stage}[/bold]")
        if self._live.is_started:
            self._live.update(Text(self._words(status), style="cyan"), refresh=True)
        elif status.done and (status.done % EVERY == 0 or status.stage == "finalists") and not new_stage:
            self.console.print(f"  {self._words(status)}", soft_wrap=True)

    def _words(self, status: Status) -> str:
        left = _clock(status.budget_s - status.elapsed_s)
        failed = f", {status.failed} failed" if status.failed else ""
        return (
            f"{status.stage} · {status.done} candidates{failed} · {left} left · "
            f"hypervolume {status.hypervolume:.4f} · best {status.best}"
        )

    def candidate(self, trial: Trial, front: Front) -> None:
        """Print a candidate's line."""
        self.console.print(candidate_line(trial, trial in front.points), soft_wrap=True)


def candidate_line(trial: Trial, on_front: bool) -> str:
    """One candidate in one line: ratio with its interval, quality, what was done."""
    number = f"[dim]{trial.number:>4}[/dim]"
    if trial.latency is None or trial.quality is None:
        return f"{number}  [red]failed[/red]  {escape(trial.what)}: {escape(trial.error)}"
    mark = "[green]●[/green]" if on_front else "[yellow]over[/yellow]" if trial.state == "INFEASIBLE" else " "
    latency = trial.latency
    span = f"({latency.ratio_best_dense_low:.3f}–{latency.ratio_best_dense_high:.3f})"
    return f"{number} {mark} {latency.ratio_best_dense:.3f}x {span}  {trial.quality:.4f}  {escape(trial.what)}"


def _interval(entry: dict[str, Any], name: str) -> str:
    return f"{entry[name]:.3f} ({entry[name + '_low']:.3f}–{entry[name + '_high']:.3f})"


def front_table(entries: Sequence[dict[str, Any]], metric: str, title: str) -> Table:
    """The front, fast to slow; reference points that are dominated stand in grey."""
    table = Table(
        title=escape(title), title_justify="left", caption_justify="left", box=None, pad_edge=False, expand=False
    )
    table.caption = (
        "ratio: candidate / the fastest dense fp32 found here, 95 % interval; drop: points of "
        f"{metric} lost against dense, on validation (chosen by) and test (shown); grey: reference, dominated"
    )
    for heading in ("fingerprint", "latency", "ratio", "speed-up", "drop val", "drop test", "size"):
        table.add_column(heading, justify="left" if heading == "fingerprint" else "right", no_wrap=True)
    table.add_column("what was done", ratio=1)
    for entry in entries:
        table.add_row(
            entry["fingerprint"][:8],
            f"{entry['latency_s'] * 1e3:.3g} ms",
            _interval(entry, "latency_ratio_best_dense"),
            f"{1 / entry['latency_ratio_best_dense']:.2f}x",
            _points(entry["drop_points_validation"]),
            _points(entry["drop_points_test"]),
            f"{entry['size_bytes'] / 1e6:.2f} MB",
            escape(entry["what"]),
            style="" if entry["on_front"] else "dim",
        )
    return table


def wide_console() -> Console:
    """A console for tables: the terminal's width, or 140 columns where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def techniques_table(found: Sequence[Technique]) -> Table:
    """Techniques by group."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("technique", "what it does"):
        table.add_column(column, no_wrap=column == "technique")
    group = ""
    for item in found:
        if item.group != group:
            table.add_row(f"\n{item.group}" if group else item.group, style="bold")
            group = item.group
        table.add_row(f"  {item.id}", escape(item.summary))
    return table


def technique_page(item: Technique) -> Text:
    """One technique: settings with their defaults, and the example plan as JSON."""
    settings = "\n".join(f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in item.settings.items())
    return Text(
        f"{item.id}: {item.summary}\n{item.paper}\n\nsettings in a plan, with their defaults\n{settings}\n\n"
        f"example: save as plan.json, then autocompress compress --task digits --plan plan.json --out compressed\n"
        f"{json.dumps(item.example_plan, indent=1)}"
    )


def compressed_table(result: Compressed) -> Table:
    """Before and after."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "dense", "compressed"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(f"{result.metric}, validation", f"{result.quality_before:.4g}", f"{result.quality_after:.4g}")
    before, after = result.size_bytes_before / 1e6, result.size_bytes_after / 1e6
    table.add_row("file", f"{before:.2f} MB", f"{after:.2f} MB")
    if result.latency:
        dense = result.latency.latency_s / result.latency.ratio * 1e3
        table.add_row("latency", f"{dense:.3g} ms", f"{result.latency.latency_s * 1e3:.3g} ms")
        low, high = result.latency.ratio_low, result.latency.ratio_high
        table.add_row("ratio, same runtime", "1", f"{result.latency.ratio:.3f} ({low:.3f} to {high:.3f})")
    table.add_row("layers changed", "", str(len(result.layers_changed)))
    table.add_row("reloads the same", "", "yes" if result.reloaded else "NO")
    return table


def survivors_table(info: SurvivorsInfo) -> Table:
    """What is left of each block."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("block", "heads", "neurons"):
        table.add_column(column, justify="left" if column == "block" else "right")
    for block in info.blocks:
        shown = [
            f"{kept} of {before}" if kept else "removed"
            for kept, before in ((block.heads, block.heads_before), (block.neurons, block.neurons_before))
        ]
        table.add_row(block.block, *shown)
    if info.hidden_before:
        table.add_row("hidden", f"{info.hidden} of {info.hidden_before}", "")
    return table
