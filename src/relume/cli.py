"""The command line. Every command takes `--json`; exit codes: 0 fine, 1 a check failed, 2 bad usage or input."""

from __future__ import annotations

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from relume._version import __version__
from relume.commands.certify import certify
from relume.commands.compact import compact
from relume.commands.diagnose import diagnose
from relume.commands.reproduce import reproduce
from relume.commands.revive import revive
from relume.commands.study import study
from relume.errors import RelumeError
from relume.launch.program import Start

app = typer.Typer(
    help="Find the units of a PyTorch network that have died while it trains: which, when, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class _Mode(str, Enum):
    train = "train"
    eval = "eval"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"relume {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the units of a PyTorch network that have died while it trains: which, when, and how sure that is."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of initial weights and batch order.")] = 1,
    epochs: Annotated[int, typer.Option(min=2, help="Of each training.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Train a small network on real digits so that units die; say why, bring them back, and report."""
    from relume import demo as the_demo

    result = the_demo.run(out, seed=seed, epochs=epochs, quiet=as_json)
    if as_json:
        _print_json(result.to_dict())
    else:
        result.tell(Console(highlight=False))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, as given to watch(save=…), or the file in it.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: report.html beside the run file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the HTML report of a finished, running or killed run."""
    from relume.report import print_verdict, verdict, write_html
    from relume.watch import load

    recording = load(run)
    path = write_html(recording, out or recording.path.parent / "report.html")
    if as_json:
        census = recording.census(phase=recording.main_phase)
        _print_json(
            {
                "report": str(path),
                "status": recording.status,
                "verdict": verdict(recording),
                "census": census.to_dict(),
            }
        )
        return
    console = Console(highlight=False)
    print_verdict(recording, console)
    console.print(f"Report: [bold]{path}[/]", soft_wrap=True)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(help="A file, a folder with a __main__.py, or with -m a module.")],
    args: Annotated[list[str] | None, typer.Argument(help="All after the script is its own.")] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module, as `python -m` does.")] = False,
    every: Annotated[str, typer.Option(help="Observe each k-th step; auto: as 1 % of the time allows.")] = "10",
    window: Annotated[int, typer.Option(min=1, help="Steps per window.")] = 100,
    out: Annotated[
        Path | None, typer.Option(help="New folder for run files and report; default: runs/NAME-DATE.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Show each model's units while it trains.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on stderr; stdout is the script's.")
    ] = False,
) -> None:
    """Run a training script, unchanged, and watch every model that it trains.

    The script's arguments, output, exit code, exceptions and signals are its own. relume prints its verdict on stderr
    after it has ended, and leaves a run file per model and a report.
    """
    from relume.launch.program import Program
    from relume.launch.session import Options, Session

    stride: int | Literal["auto"] = "auto" if every == "auto" else int(every) if every.isdigit() else 0
    if stride == 0:
        raise typer.BadParameter(f"a whole number of at least 1, or auto, not {every!r}", param_hint="'--every'")
    options = Options(stride, window, out, tuple(include or ()), tuple(exclude or ()), live, as_json)
    raise Start(Session(Program(script, tuple(args or ()), module), options).run)


@app.command()
def census(
    model: Annotated[str, typer.Argument(help="MODULE:NAME or FILE.py:NAME of a module, or of what makes one.")],
    data: Annotated[str, typer.Option(help="MODULE:NAME of a DataLoader, tensor or batches, or of what makes one.")],
    weights: Annotated[Path | None, typer.Option(help="State dict by torch.save, or a .safetensors file.")] = None,
    phase: Annotated[_Mode, typer.Option(help="Mode that the model is run in.")] = _Mode.eval,
    min_inputs: Annotated[int, typer.Option(min=1, help="Below it a silent unit is unknown, not dead.")] = 256,
    max_batches: Annotated[int | None, typer.Option(min=1, help="Take no more batches than this.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Unit axis, as N or PATTERN=N; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of torch, before model and data are made.")] = 0,
    fail_over: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fail when a larger share of all judged units is dead.")
    ] = None,
    fail_over_site: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fail when a larger share of any one site is dead.")
    ] = None,
    fail_on_unknown: Annotated[
        bool, typer.Option("--fail-on-unknown", help="Fail when units could not be judged.")
    ] = False,
    sarif: Annotated[Path | None, typer.Option(help="Write the dead units as SARIF 2.1.0.")] = None,
    summary: Annotated[
        Path | None,
        typer.Option(envvar="GITHUB_STEP_SUMMARY", help="Write a Markdown page; the one of a GitHub job is added to."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the dead units of a trained model, and fail when there are too many: a check for CI.

    Imports the modules that are named, so what they do when imported is done. With a limit set, NaN or infinite
    pre-activations and a model of which nothing could be judged fail too. Exit code: 0 fine, 1 over a limit, 2 error.
    """
    from relume import check

    limits = check.Limits(fail_over, fail_over_site, fail_on_unknown)
    source, found = check.run(
        model, data, weights, seed=seed, max_batches=max_batches, axis=check.axes(axis or ()), phase=phase.value,
        min_inputs=min_inputs, include=tuple(include or ()), exclude=tuple(exclude or ()),
    )  # fmt: skip
    failures = limits.failures(found)
    if sarif is not None:
        check.write(sarif, json.dumps(check.sarif(found, source, failures), indent=2, ensure_ascii=False))
    if summary is not None:
        page = check.markdown(found, failures, checked=limits.set)
        check.write(summary, page, add=str(summary) == os.environ.get("GITHUB_STEP_SUMMARY"))
    if as_json:
        _print_json({"passed": not failures, "failures": failures, "census": found.to_dict()})
    else:
        console = Console(highlight=False)
        console.print(found)
        for note in found.notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        for failure in failures:
            console.print(f"failed: {failure}", style="red", markup=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


@app.command()
def activations(
    names: Annotated[
        list[str] | None,
        typer.Argument(help='Parameters go in brackets: "leaky_relu(0.2)". Default: all.'),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw functions, derivatives and flat zones as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what relume knows of activation functions: formula, flat zone, gains; with names, all that is known."""
    from relume.activations import activation, all_activations
    from relume.activations.plot import svg
    from relume.activations.table import details, overview, to_dict

    try:
        chosen = [activation(name) for name in names] if names else list(all_activations())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'NAMES'") from error
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(svg(chosen), encoding="utf-8")
    if as_json:
        _print_json([to_dict(a) for a in chosen])
        return
    console = Console(highlight=False)
    for table in map(details, chosen) if names else [overview(chosen)]:
        console.print(table)
        console.print()
    if plot is not None:
        console.print(f"Plot: [bold]{plot}[/]", soft_wrap=True)


app.command()(certify)
app.command()(diagnose)
app.command()(compact)
app.command()(revive)
app.command()(reproduce)
app.command()(study)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point: relume's own errors become one line on stderr and exit code 2; a program's errors are its own."""
    program: Start | None = None
    hook = sys.excepthook
    try:
        app()
    except Start as start:
        program = start
    except (RelumeError, OSError) as error:
        typer.echo(f"relume: {error}", err=True)
        sys.exit(2)
    if program is not None:
        sys.excepthook = hook  # typer has set its own
        program.run()
