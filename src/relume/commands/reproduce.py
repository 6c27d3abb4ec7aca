"""`relume reproduce`: what papers report of dying units, measured again in minutes, with whether it agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def reproduce(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: list them.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Nearer to the paper's scale: hours, not minutes.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The first seed; the others follow it.")] = 0,
    scale: Annotated[float, typer.Option(help="Of seeds and steps; below 1 a trial whose rows mean little.")] = 1.0,
    store: Annotated[
        Path | None, typer.Option(help="Add the results to this JSON file, and write the page of its name (.md).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Measure again what a paper reports: published figure, ours with its interval, and whether they agree.

    Without names, lists what there is; with --store alone, writes the page anew. Exit code: 0 whatever was found (a
    paper that is contradicted is a result), 2 error.
    """
    from relume.lab import reproduce as lab
    from relume.lab.reproduce import show, stored

    console = Console(highlight=False)
    for name in names or ():
        if name not in lab.names():
            raise typer.BadParameter(f"{name!r} is not one of: {', '.join(lab.names())}", param_hint="'NAMES'")
    if scale <= 0:
        raise typer.BadParameter(f"more than 0, not {scale}", param_hint="'--scale'")
    if store is not None:
        stored.read(store)  # before hours are spent on what could not be added to it
    if not names:
        listed = {name: lab.title(name) for name in lab.names()}
        if store is not None:
            page = stored.add(store, ())
            typer.echo(json.dumps({"page": str(page)}) if as_json else f"Page: {page}")
        elif as_json:
            typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        else:
            for name, title in listed.items():
                console.print(f"[bold]{name:16}[/]{title}", soft_wrap=True)
        return
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as bar:
        for name in names:
            task = bar.add_task(name, total=1.0)

            def tell(done: float, what: str, task: int = task, name: str = name) -> None:
                bar.update(task, completed=done, description=f"{name}: {what}")  # type: ignore[arg-type]

            result = lab.reproduce(name, full=full, seed=seed, progress=tell, scale=scale)
            bar.remove_task(task)
            results.append(result)
            if store is not None:  # each as it ends: the next may be stopped
                stored.add(store, [result])
            if not as_json:
                bar.console.file.flush()
                console.print(show.terminal(result))
                console.print()
    if as_json:
        typer.echo(json.dumps([r.to_dict() for r in results], indent=2, ensure_ascii=False, allow_nan=False))
    elif store is not None:
        console.print(f"Page: [bold]{store.with_suffix('.md')}[/]", soft_wrap=True)
