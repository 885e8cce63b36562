"""The command line: each command calls one public function. Heavy imports stay inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.errors import AutocompressError

app = typer.Typer(
    help="Search for the best compressed model under a latency budget, measured on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
TASKS = "digits, text-classification, image-classification, causal-lm or my.py:make_task"
Model = Annotated[str | None, typer.Option(help="Hugging Face folder or hub id")]
Data = Annotated[str | None, typer.Option(help="folder, csv / json / parquet / txt file, or hub name")]
Column = Annotated[str | None, typer.Option()]
BankLimit = Annotated[str | None, typer.Option(help="disk for intermediate results, such as 2GB")]
MaxLatency = Annotated[str | None, typer.Option(help="such as 5ms")]
MinSpeedup = Annotated[str | None, typer.Option(help="such as 2x, against the fastest dense fp32 setting")]
MaxSize = Annotated[str | None, typer.Option(help="largest file, such as 5MB")]
MaxMemory = Annotated[str | None, typer.Option(help="peak of a process that loads it and runs a query, such as 200MB")]
MaxDrop = Annotated[str | None, typer.Option(help="such as 1pt (points) or 1% (relative), on validation")]


@app.command()
def search(
    experiment: Annotated[Path | None, typer.Argument(help="an experiment.yaml; flags go before its settings")] = None,
    task: Annotated[str | None, typer.Option(help=TASKS)] = None,
    model: Model = None,
    data: Data = None,
    text_column: Column = None,
    image_column: Column = None,
    label_column: Column = None,
    space: Annotated[str | None, typer.Option(help="a shipped search space or a .yaml file")] = None,
    hardware: Annotated[str | None, typer.Option(help="a shipped hardware profile or a .yaml file [cpu]")] = None,
    budget: Annotated[str | None, typer.Option(help="wall-clock, such as 90s, 30m or 2h [30m]")] = None,
    max_latency: MaxLatency = None,
    min_speedup: MinSpeedup = None,
    max_drop: MaxDrop = None,
    max_size: MaxSize = None,
    max_memory: MaxMemory = None,
    objectives: Annotated[
        str | None, typer.Option(help="latency,quality and size or memory beside them [latency,quality]")
    ] = None,
    out: Annotated[str | None, typer.Option(help="run folder [runs/TASK]")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="staged, joint (one Optuna study over everything) or solve [the space's]")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="auto, tpe, nsga2, nsga3, gp or random [auto]")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    max_trials: Annotated[int | None, typer.Option(help="candidates to evaluate at most")] = None,
    patience: Annotated[
        int | None, typer.Option(help="stop after so many candidates that add under 0.1% of hypervolume [never]")
    ] = None,
    warm_start: Annotated[str | None, typer.Option(metavar="RUN", help="evaluate an earlier run's front first")] = None,
    bank_limit: BankLimit = None,
    workers: Annotated[int | None, typer.Option(help="processes that build candidates, or tasks of --ray [1]")] = None,
    ray: Annotated[str | None, typer.Option(help="a Ray cluster: host:port, ray://host:port, auto or local")] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="of a staged run, this stage alone in its folder: losses, solve, refine, recover or finalists; "
            "--budget is then the time for this stage"
        ),
    ] = None,
) -> None:
    """Search; the same command again resumes."""
    flags = dict(locals())
    del flags["experiment"], flags["stage"]
    from autocompress.experiment import SOURCE_KEYS, load_experiment
    from autocompress.hardware import load_profile
    from autocompress.show import Progress
    from autocompress.tasks import TaskSource, load_task

    settings = load_experiment(experiment, flags)
    profile = load_profile(settings.hardware)
    with Progress() as progress:
        source = {key: getattr(settings, key) for key in SOURCE_KEYS}
        made = load_task(TaskSource(**source), profile.workload.sequence_length, progress.say)
        for note in made.notes:
            progress.say(note)
        from autocompress.launch import search as run_search

        run = run_search(
            made,
            out=settings.out,
            space=settings.space,
            hardware=settings.hardware,
            budget=settings.budget,
            max_latency=settings.max_latency,
            min_speedup=settings.min_speedup,
            max_drop=settings.max_drop,
            max_size=settings.max_size,
            max_memory=settings.max_memory,
            objectives=settings.objectives,
            strategy=settings.strategy,  # type: ignore[arg-type]
            sampler=settings.sampler,  # type: ignore[arg-type]
            seed=settings.seed,
            max_trials=settings.max_trials,
            patience=settings.patience,
            warm_start=settings.warm_start,
            bank_limit=settings.bank_limit,
            workers=settings.workers,
            ray=settings.ray,
            stage=stage,
            watcher=progress,
            source=source,
        )
    _print_front(run)


def _tell(text: str) -> None:
    """How far it is goes to stderr, so that stdout holds results alone."""
    print(text, file=sys.stderr, flush=True)


def _loaded(hardware: str, *source: str | None) -> tuple[Any, Any]:
    """A hardware profile, and the task that the fields of a `TaskSource` name for its workload."""
    from autocompress.hardware import load_profile
    from autocompress.tasks import TaskSource, load_task

    profile = load_profile(hardware)
    task = load_task(TaskSource(*source), profile.workload.sequence_length, _tell)  # type: ignore[arg-type]
    for note in task.notes:
        _tell(note)
    return profile, task


def _print_front(run: Any) -> None:
    from autocompress.show import found_tables, front_table, wide_console

    console = wide_console()
    entries = run.entries()
    resolved = run.experiment["resolved"]
    console.print()
    console.print(front_table(entries, resolved["metric"], f"Pareto front of {run.folder}: {run.status()}"))
    if not run.front.points:
        console.print("\nNo candidate keeps the budgets; the report shows the nearest miss.")
    for table in found_tables(run.state.get("stages", ()), run.found):
        console.print()
        console.print(table)
    console.print(f"\nreport  {run.folder / 'report.html'}")
    console.print(f"models  {run.folder / 'artifacts'}")
    least = "1pt" if resolved["points"] == 100 else "1%"  # a point of a raw metric may be nothing, or everything
    console.print(f"pick    autocompress pick {run.folder} --max-drop {least} --out picked")


@app.command()
def compress(
    plan: Annotated[Path, typer.Option(help="a plan.json; names in it may be patterns such as *.mlp.fc1")],
    out: Annotated[Path, typer.Option(help="folder for the model")],
    task: Annotated[str, typer.Option(help=TASKS)],
    model: Model = None,
    data: Data = None,
    text_column: Column = None,
    image_column: Column = None,
    label_column: Column = None,
    student: Annotated[str | None, typer.Option(help="a smaller network to compress and teach in place of it")] = None,
    hardware: Annotated[str, typer.Option(help="a shipped hardware profile or a .yaml file")] = "cpu",
    bank_limit: BankLimit = None,
    measure: Annotated[bool, typer.Option("--measure", help="time the file against the dense one, too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one object on stdout")] = False,
) -> None:
    """Apply one plan without a search; `autocompress techniques` shows what a plan can say."""
    from autocompress.budgets import parse_bytes

    limit = parse_bytes(bank_limit, "--bank-limit") if bank_limit else None
    _profile, made = _loaded(hardware, task, model, data, text_column, image_column, label_column, student)
    from autocompress.toolbox import compress as run_compress

    result = run_compress(made, plan, out, hardware=hardware, bank_limit=limit, measure=measure)
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    from autocompress.show import compressed_table, survivors_table, wide_console

    console = wide_console()
    console.print(f"{result.what}\n", soft_wrap=True, markup=False)
    console.print(compressed_table(result))
    for warning in result.latency.warnings if result.latency else ():
        console.print(f"  {warning}", soft_wrap=True, markup=False)
    if result.survivors:
        console.print()
        console.print(survivors_table(result.survivors))
        console.print(f"\nfigure  {result.folder / 'survivors.html'}")
    console.print(f"\nmodel   {result.artifact}")
    console.print(f"load    autocompress.load({str(result.folder)!r})")


@app.command()
def techniques(
    as_json: Annotated[bool, typer.Option("--json", help="a list of objects on stdout")] = False,
    name: Annotated[str | None, typer.Argument(metavar="[ID]", help="one technique, with its example plan")] = None,
) -> None:
    """List the techniques: what each does, its settings in a plan, its paper, and a plan that runs on the demo."""
    from autocompress.techniques import TECHNIQUES, technique

    found = TECHNIQUES if name is None else (technique(name),)
    if as_json:
        print(json.dumps([item.to_json() for item in found], indent=1, ensure_ascii=False))
        return
    from autocompress.show import technique_page, techniques_table, wide_console

    wide_console().print(techniques_table(found) if name is None else technique_page(found[0]))


@app.command()
def front(
    run: RunArgument, as_json: Annotated[bool, typer.Option("--json", help="a list of objects on stdout")] = False
) -> None:
    """Print the front of a run."""
    from autocompress.run import Run

    opened = Run.open(run)
    if as_json:
        print(json.dumps(opened.entries(absolute=True), indent=1))
    else:
        _print_front(opened)


@app.command()
def pick(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="folder for the model")],
    max_latency: MaxLatency = None,
    min_speedup: MinSpeedup = None,
    max_drop: MaxDrop = None,
    max_size: MaxSize = None,
    max_memory: MaxMemory = None,
    fingerprint: Annotated[str | None, typer.Option(help="one candidate, instead of budgets")] = None,
    formats: Annotated[
        str | None, typer.Option("--format", help="onnx, openvino, pt2, transformers: one or several [as graded]")
    ] = None,
) -> None:
    """Write the model that fits into a folder of its own; exit code 3 when none does."""
    from autocompress.run import Run

    wanted = [item.strip() for item in (formats or "").split(",") if item.strip()]
    picked = Run.open(run).pick(
        out, max_latency, min_speedup, max_drop, max_size, fingerprint, formats=wanted, max_memory=max_memory
    )
    figures = picked.figures
    print(f"{figures['fingerprint']}: {figures['what']}")
    source = "" if figures["latency_source"] == "measured" else f"{figures['latency_source']}, not measured: "
    print(
        f"{source}{1 / figures['latency_ratio_best_dense']:.2f}x faster than the fastest dense fp32, "
        f"{figures['drop_points_validation']:+.2f} points lost on validation"
        + (f", {figures['drop_points_test']:+.2f} on test" if figures["drop_points_test"] is not None else "")
    )
    print(f"written to {picked.folder}; its README.md shows how to load it")


@app.command()
def probe(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="a shipped hardware profile or a .yaml file")],
    widths: Annotated[str | None, typer.Option(help="features of the linears to try [256,768,1536]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a list of objects on stdout")] = False,
) -> None:
    """Time every precision against fp32 on this machine: which become kernels of their own, and at which widths."""
    from autocompress.hardware import load_profile
    from autocompress.kernels import parse_widths, probe_kernels

    opened = load_profile(profile)
    facts = probe_kernels(opened, parse_widths(widths) if widths else None, lambda fact: _tell(fact.words()))
    if as_json:
        print(json.dumps([fact.to_json() for fact in facts], indent=1))
        return
    from autocompress.show import kernels_table, wide_console

    wide_console().print(kernels_table(facts, opened.description or opened.name))


@app.command()
def record(
    profile: Annotated[str, typer.Option(help="of this device: a shipped hardware profile or a .yaml file")],
    out: Annotated[Path, typer.Option(help="the .json file to take along")],
    task: Annotated[str, typer.Option(help=TASKS)],
    model: Model = None,
    data: Data = None,
    text_column: Column = None,
    image_column: Column = None,
    label_column: Column = None,
    space: Annotated[str | None, typer.Option(help="whose choices are timed [fits the model]")] = None,
) -> None:
    """Time a model's parts on this device into one file, by which another machine can search for it."""
    opened, made = _loaded(profile, task, model, data, text_column, image_column, label_column)
    from autocompress.tables import record as run_record

    run_record(made, opened, out, space=space, say=_tell)
    print(f"written to {out}; on another machine: autocompress search --hardware {out} …")


@app.command()
def measure(
    run: RunArgument,
    hardware: Annotated[str, typer.Option(help="a shipped hardware profile, a .yaml file, or a recorded .json")],
    full: Annotated[bool, typer.Option("--full", help="1,024 queries or more in several processes; p99")] = False,
    out: Annotated[Path | None, typer.Option(help="file to write [RUN/measured.json]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one object on stdout")] = False,
) -> None:
    """Time a run's front on this device without compressing again; the report shows both side by side."""
    from autocompress.devices import measure_front
    from autocompress.run import Run

    opened = Run.open(run)
    found = measure_front(opened, hardware, tier="full" if full else "report", out=out, say=_tell)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    from autocompress.show import elsewhere_table, wide_console

    wide_console().print(elsewhere_table(found, opened.front))
    if out is None:
        print(f"\nreport  {opened.report()}")


@app.command()
def report(run: RunArgument) -> None:
    """Write report.html: one file that works offline."""
    from autocompress.run import Run

    print(Run.open(run).report())


#: Exit code of a command that was interrupted from the keyboard.
INTERRUPTED = 130


def main() -> None:
    """Entry point: errors of autocompress become one message and an exit code."""
    try:
        code = app(standalone_mode=False)  # typer returns the code of an exit and of Ctrl-C, and None from a command
    except AutocompressError as fault:
        print(f"autocompress: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)
    except Exception as fault:
        if not hasattr(fault, "format_message"):
            raise
        message = fault.format_message()  # of click's usage errors; none where it has printed the help
        if message:
            print(f"autocompress: {message}", file=sys.stderr)
        sys.exit(2)
    if code == INTERRUPTED:
        print("autocompress: stopped; the same command resumes", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
