"""`relume study`: run what a TOML file describes, kept as it lands; the same command goes on where it was stopped."""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from relume.lab.study import Study


class Runner(str, Enum):
    """Who trains."""

    local = "local"
    ray = "ray"


def study(
    config: Annotated[Path, typer.Argument(help="TOML file; docs/study.md says what may stand in it.")],
    runner: Annotated[Runner, typer.Option(help="This machine, or a Ray cluster.")] = Runner.local,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; default: one is started here.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each CPU.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the store; default: runs/NAME.")] = None,
    table: Annotated[Path | None, typer.Option(help="Write a row per run, as .parquet or .csv.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Run once more what has failed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Run a study, or what of it has not been run: nothing is run twice, whenever it was stopped or killed.

    Exit code: 0 fine, 1 some members failed, 2 error, 130 stopped by Ctrl-C.
    """
    if table is not None and table.suffix not in (".parquet", ".csv"):
        raise typer.BadParameter(f"a .parquet or .csv file, not {table}", param_hint="'--table'")
    if address is not None and runner is Runner.local:
        raise typer.BadParameter("an address is of a Ray cluster: give --runner ray too", param_hint="'--address'")
    from relume.lab.study import Study

    errors = Console(stderr=True, highlight=False)
    with Study(config, out=out) as opened:
        try:
            opened.run(
                runner=runner.value, jobs=jobs or _cpus(), address=address, progress=errors if not as_json else False,
                again=again,
            )  # fmt: skip
        except KeyboardInterrupt:
            done, failed, total = opened.counts()
            errors.print(f"Stopped: {done + failed:,} of {total:,} runs are kept; the same command goes on.")
            raise typer.Exit(130) from None
        if table is not None:
            rows = opened.table()
            rows.to_parquet(table) if table.suffix == ".parquet" else rows.to_csv(table)
        if as_json:
            told = _as_json(opened, table)
            typer.echo(json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False))
        else:
            _tell(opened, table, Console(highlight=False))
        if opened.counts().failed:
            raise typer.Exit(1)


def _as_json(study: Study, table: Path | None) -> dict[str, Any]:
    done, failed, total = study.counts()
    return {
        "name": study.config.name,
        "folder": str(study.folder),
        "members": total,
        "done": done,
        "failed": failed,
        "objective": study.config.objective,
        "best": [place.to_dict() for place in study.best()],
        "failures": [{"key": m.key, "settings": m.to_dict(), "error": error} for m, error in study.failures()],
        "table": None if table is None else str(table),
    }


def _tell(study: Study, table: Path | None, console: Console) -> None:
    from relume.lab.study.show import best_table

    done, failed, _ = study.counts()
    console.print(best_table(study.best(), title=f"{study.config.name}: best by {study.config.objective} score"))
    console.print(f"{done:,} runs done, {failed:,} failed.")
    for member, error in study.failures()[:5]:
        settings = ", ".join(f"{name}={member.to_dict()[name]}" for name in (*study.config.varied(), "seed"))
        console.print(f"failed: {settings}: {error}", style="red", markup=False, soft_wrap=True)
    if failed > 5:
        console.print(f"… and {failed - 5:,} more", style="red")
    if table is not None:
        console.print(f"Table: [bold]{table}[/]", soft_wrap=True)
    console.print(f"Store: [bold]{study.folder}[/]", soft_wrap=True)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
