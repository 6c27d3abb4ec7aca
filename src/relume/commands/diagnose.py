"""`relume diagnose`: the findings of a run file, for people, as JSON and as SARIF, with an exit code for CI."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from relume.diagnose import Finding


class FailOn(str, Enum):
    """The least grave finding that is a failure."""

    error = "error"
    warning = "warning"
    none = "none"

    def fails(self, findings: list[Finding]) -> bool:
        grave = {"error": ("error",), "warning": ("error", "warning"), "none": ()}[self.value]
        return any(f.severity in grave for f in findings)


def diagnose(
    run: Annotated[Path, typer.Argument(help="A run's folder, as given to watch(save=…), or the file in it.")],
    fail_on: Annotated[
        FailOn, typer.Option(help="Exit with 1 when there is a finding as grave as this.")
    ] = FailOn.none,
    sarif: Annotated[Path | None, typer.Option(help="Write the findings as SARIF 2.1.0.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Say why units of a finished, running or killed run died, with the evidence and what to do.

    Exit code: 0 fine, 1 a finding at least as grave as --fail-on, 2 error.
    """
    from relume import check
    from relume.report.findings_terminal import findings_text
    from relume.watch import load

    recording = load(run)
    findings = recording.diagnose()
    if sarif is not None:
        log = check.findings_sarif(findings, recording)
        check.write(sarif, json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False))
    if as_json:
        found = check.findings_json(findings, recording)
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console = Console(highlight=False)
        about = recording.about
        trained = f" steps of {about['optimizer']}" if about.get("optimizer") else " steps"
        steps = 1 + max(window.last_step for window in recording.windows)
        console.print(
            f"{about.get('model', 'A model')}, {about.get('steps', steps):,}{trained} ({recording.status}).",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        console.print()
        console.print(findings_text(findings))
    if fail_on.fails(findings):
        raise typer.Exit(1)
