"""What the terminal shows: progress while searching, and the front as a table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autocompress.elsewhere import Elsewhere
from autocompress.found import TRUSTED, Audit, Found
from autocompress.front import Front
from autocompress.records import Latency, Trial, aside
from autocompress.report.importances import ImportancesInfo, importances_info
from autocompress.report.stages import stages_info
from autocompress.report.survivors import SurvivorsInfo
from autocompress.report.words import speed_up_text
from autocompress.searching.status import Status
from autocompress.techniques import Technique

if TYPE_CHECKING:
    from autocompress.kernels import KernelFact
    from autocompress.toolbox import Compressed  # with torch, which `front` and `report` do without

#: Marks a point that is tied in quality with its faster neighbour.
TIED = "≈"

#: What stands in a candidate's line.
LEGEND = "   # ● on the front  ratio to the fastest dense (95 % interval)  quality on validation  what was done"

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
        self._explained = False

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
        elif (
            not status.detail
            and status.done
            and (status.done % EVERY == 0 or status.stage == "finalists")
            and not new_stage
        ):
            self.console.print(f"  {self._words(status)}", soft_wrap=True)

    def _words(self, status: Status) -> str:
        left = _clock(status.budget_s - status.elapsed_s)
        failed = f", {status.failed} failed" if status.failed else ""
        detail = f" · {status.detail}" if status.detail else ""
        return (
            f"{status.stage} · {status.done} candidates{failed} · {left} left · "
            f"hypervolume {status.hypervolume:.4f} · best {status.best}{detail}"
        )

    def candidate(self, trial: Trial, front: Front) -> None:
        """Print a candidate's line; before the first one, what stands in it."""
        if not self._explained:
            self._explained = True
            self.console.print(f"[dim]{LEGEND}[/dim]", soft_wrap=True)
        self.console.print(candidate_line(trial, trial in front.points), soft_wrap=True)


def candidate_line(trial: Trial, on_front: bool) -> str:
    """One candidate in one line: ratio with its interval, quality, what was done."""
    number = f"[dim]{trial.number:>4}[/dim]"
    if trial.latency is None or trial.quality is None:
        return f"{number}  [red]failed[/red]  {escape(trial.what)}: {escape(trial.error)}"
    mark = "[green]●[/green]" if on_front else "[yellow]over[/yellow]" if trial.state == "INFEASIBLE" else " "
    latency = trial.latency
    span = f"({latency.ratio_best_dense_low:.3f}–{latency.ratio_best_dense_high:.3f})"
    span = span if latency.source == "measured" else f"({latency.source})"
    return f"{number} {mark} {latency.ratio_best_dense:.3f} {span}  {trial.quality:.4f}  {escape(trial.what)}"


def _interval(entry: dict[str, Any], name: str) -> str:
    """A ratio with its doubt; in the place of an interval stands where a figure comes from that was not measured."""
    if entry["latency_source"] != "measured":
        return f"{entry[name]:.3f} ({entry['latency_source']})"
    return f"{entry[name]:.3f} ({entry[name + '_low']:.3f}–{entry[name + '_high']:.3f})"


def front_table(entries: Sequence[dict[str, Any]], metric: str, title: str) -> Group:
    """The front, fast to slow; reference points that are dominated stand in grey."""
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, expand=False)
    memory = any(entry["peak_memory_bytes"] is not None for entry in entries)
    parts = {entry["validation_part"] for entry in entries} - {"all"}
    of = f"the {parts.pop()} part of validation" if parts else "validation"
    caption = (
        "ratio: latency to that of the fastest dense fp32 found here, 95 % interval; grey: reference, dominated\n"
        f"drop: points of {metric} lost against dense; val: on {of}, by which the front is chosen; test: only shown"
    )
    if memory:
        caption += "\nmemory: peak of a process that loads the file and answers one query"
    if any(entry["tied_with"] for entry in entries):
        caption += f"\n{TIED}: tied; the same validation samples do not show it better than its faster neighbour (95 %)"
    headings = ("fingerprint", "latency", "ratio", "speed-up", "drop val", "drop test", "size")
    for heading in (*headings, *(["memory"] if memory else [])):
        table.add_column(heading, justify="left" if heading == "fingerprint" else "right", no_wrap=True)
    table.add_column("what was done", ratio=1)
    for entry in entries:
        table.add_row(
            entry["fingerprint"][:8],
            f"{entry['latency_s'] * 1e3:.3g} ms",
            _interval(entry, "latency_ratio_best_dense"),
            f"{1 / entry['latency_ratio_best_dense']:.2f}x",
            (f"{TIED} " if entry["tied_with"] else "") + _points(entry["drop_points_validation"]),
            _points(entry["drop_points_test"]),
            f"{entry['size_bytes'] / 1e6:.2f} MB",
            *([_megabytes(entry["peak_memory_bytes"])] if memory else []),
            escape(entry["what"]),
            style="" if entry["on_front"] else "dim",
        )
    return _under(table, caption)


def found_tables(stages: Sequence[Mapping[str, Any]], found: Found) -> Iterator[Group]:
    """What a search did and found out, each part with a line of its own; nothing of what is not known."""
    if stages:
        yield _stages_table(stages)
    if found.audits:
        yield _audits_table(found.audits)
    info = importances_info(found)
    if info.outcomes:
        yield _importances_table(info)


def _small_table(title: str, *columns: str) -> Table:
    """A table whose first column holds words and the others numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _under(table: Table, text: str) -> Group:
    """A table with a caption that may be wider than it."""
    return Group(table, Text(text, style="table.caption"))


def _stages_table(stages: Sequence[Mapping[str, Any]]) -> Group:
    table = _small_table("Stages", "stage", "time", "candidates", "hypervolume before", "after", "gained")
    for row in stages_info(stages):
        table.add_row(escape(row.stage), row.time, row.candidates, row.before, row.after, row.gain)
    return _under(table, "hypervolume: in all objectives, on what the search selects by; more is better")


def _audits_table(audits: Sequence[Audit]) -> Group:
    table = _small_table("Can few steps foretell many?", "rungs", "ratio", "candidates", "correlation", "")
    for audit in audits:
        figure = "all alike" if math.isnan(audit.correlation) else f"{audit.correlation:+.2f}"
        mark = "[green]trusted[/green]" if audit.trusted else "[yellow]not trusted[/yellow]"
        table.add_row(
            f"{audit.lower} → {audit.upper}", f"{audit.low:.3f}–{audit.high:.3f}", str(audit.count), figure, mark
        )
    return _under(
        table,
        f"Spearman's rank correlation of qualities on two rungs, by bins of latency; trusted from {TRUSTED:g} on.\n"
        "Rung 0 is without recovery. Of a trusted rung a third goes on to a longer recovery, else up to twice as many.",
    )


def _importances_table(info: ImportancesInfo) -> Group:
    """A row per setting or group, a pair of columns per outcome."""
    columns = [column for outcome in info.outcomes for column in (outcome, "by chance")]
    table = _small_table("Which settings matter", "", *columns)
    for name in info.names:
        bars = [next((bar for bar in bars if bar.name == name), None) for bars in info.outcomes.values()]
        cells = [
            cell for bar in bars for cell in ((f"{bar.share:.0f} %", f"{bar.chance:.0f} %") if bar else ("–", "–"))
        ]
        table.add_row(escape(name), *cells, style="" if any(bar and bar.shown for bar in bars) else "dim")
    told = "share of the variance that each explains by itself (fANOVA); by chance: up to so much, in 19 of 20 cases"
    return _under(table, "\n".join([*info.notes, told]))


def wide_console() -> Console:
    """A console for tables: the terminal's width, or 140 columns where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.0f} MB"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def kernels_table(facts: Sequence[KernelFact], title: str) -> Table:
    """What each precision does to each width."""
    table = Table(title=escape(title), title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0))
    table.caption = (
        "ratio: latency to fp32, 95 % interval; dropped: not faster than the next heavier precision that is kept; "
        "computed in: what the runtime says that the products ran in"
    )
    for column in ("layers", "rows", "precision", "ratio", "computed in", ""):
        table.add_column(column, justify="right" if column in ("rows", "ratio") else "left")
    for fact in facts:
        ratio = "–" if fact.ratio is None else f"{fact.ratio:.2f} ({_doubt(fact)})"
        ran = ", ".join(f"{count} {name}" for name, count in sorted(fact.computed_in.items())) or "–"
        mark = "[green]kept[/green]" if fact.kept else f"[yellow]dropped[/yellow]: {escape(fact.why)}"
        table.add_row(f"{fact.kind} {fact.width}", str(fact.rows), fact.precision, ratio, ran, mark)
    return table


def _doubt(fact: KernelFact) -> str:
    return f"{fact.low:.2f}–{fact.high:.2f}" if fact.source == "measured" else fact.source


def elsewhere_table(found: Elsewhere, front: Front) -> Table:
    """A front where it was searched and on another device."""
    table = Table(
        title=escape(found.name), title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    table.caption = f"speed-up: to the fastest dense fp32 of each device; there: {escape(found.best_dense)}"
    for column in ("fingerprint", "latency here", "speed-up here", "latency there", "speed-up there", "what was done"):
        table.add_column(column, justify="left" if column in ("fingerprint", "what was done") else "right")
    for trial in front.measured:
        there, here = found.latencies.get(trial.fingerprint), trial.latency
        if there is None or here is None:
            continue
        cells = [cell for one in (here, there) for cell in (f"{one.latency_s * 1e3:.3g} ms", speed_up_text(one))]
        table.add_row(trial.fingerprint[:8], *cells, escape(trial.what))
    return table


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
        for row in _latency_rows(result.latency):
            table.add_row(*row)
    table.add_row("layers changed", "", str(len(result.layers_changed)))
    table.add_row("reloads the same", "", "yes" if result.reloaded else "NO")
    return table


def _latency_rows(latency: Latency) -> Iterator[tuple[str, str, str]]:
    """What, dense, compressed."""
    dense = latency.latency_s / latency.ratio
    yield f"latency{aside(latency.source)}", f"{dense * 1e3:.3g} ms", f"{latency.latency_s * 1e3:.3g} ms"
    if latency.first_token_s is not None and latency.per_token_s is not None:
        yield "  first token", "", f"{latency.first_token_s * 1e3:.3g} ms"
        yield "  each token after it", "", f"{latency.per_token_s * 1e3:.3g} ms"
    doubt = f"{latency.ratio_low:.3f} to {latency.ratio_high:.3f}" if latency.source == "measured" else latency.source
    yield "ratio, same runtime", "1", f"{latency.ratio:.3f} ({doubt})"


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
