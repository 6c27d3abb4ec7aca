"""The command line. Every command takes `--json`; exit codes: 0 fine, 1 a check failed, 2 bad usage or input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from relume._version import __version__
from relume.errors import RelumeError

app = typer.Typer(
    help="Find the units of a PyTorch network that have died while it trains: which, when, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


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
    out: Annotated[Path, typer.Option(help="Folder for the two runs and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of initial weights and batch order.")] = 1,
    epochs: Annotated[int, typer.Option(min=2, help="Of each of the two trainings.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Train a small network on real digits twice, once so that units die, and report."""
    from relume import demo as the_demo

    result = the_demo.run(out, seed=seed, epochs=epochs, quiet=as_json)
    if as_json:
        _print_json(result)
        return
    doomed, sane = result["doomed"], result["sane"]
    console = Console(highlight=False)
    console.print()
    console.print(f"[bold]Learning rate {doomed['learning_rate']:g}[/] (doomed): {doomed['verdict']}")
    console.print()
    console.print(f"[bold]Learning rate {sane['learning_rate']:g}[/] (sane): {sane['verdict']}")
    console.print()
    console.print(
        f"Right on held-out digits: [bold]{doomed['held_out_accuracy']:.1%}[/] doomed, "
        f"[bold]{sane['held_out_accuracy']:.1%}[/] sane. Nothing in the falling loss says why; the dead units do."
    )
    console.print()
    console.print(f"Report: [bold]{result['report']}[/]", soft_wrap=True)


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
        census = recording.census(phase="train" if any("train" in w.counts for w in recording.windows) else "eval")
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


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point: relume's own errors become one line on stderr and exit code 2."""
    try:
        app()
    except (RelumeError, OSError) as error:
        typer.echo(f"relume: {error}", err=True)
        sys.exit(2)
