"""`relume compact`: a checkpoint without its dead units, with the recipe by which the original's class is rebuilt."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


def compact(
    model: Annotated[str, typer.Argument(help="MODULE:NAME or FILE.py:NAME of a module, or of what makes one.")],
    out: Annotated[Path, typer.Option(help="File for weights and recipe; relume.rebuild(model, FILE) reads it.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="MODULE:NAME of a DataLoader, tensor or batches, or of what makes one: the data of the proof."
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="State dict by torch.save, or a .safetensors file.")] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="Remove what this certificate (relume certify) proves dead, not what --data shows."),
    ] = None,
    min_inputs: Annotated[int, typer.Option(min=1, help="Below it a silent unit is unknown, not dead.")] = 256,
    max_batches: Annotated[int | None, typer.Option(min=1, help="Take no more batches than this.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Measure the time of a batch before and after.")] = False,
    seed: Annotated[int, typer.Option(help="Of torch, before model and data are made.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Remove the dead units of a trained model, prove on data that it computes the same, and save it.

    Imports the modules that are named, so what they do when imported is done. Nothing is written when the proof fails.
    Exit code: 0 fine, also when there was nothing to remove; 2 error.
    """
    from relume.check.loading import InputError

    if data is None and certificate is None:
        raise InputError("compact needs --data, or a --certificate, to know which units are dead")
    with contextlib.redirect_stdout(sys.stderr):
        result = _made(
            model, data, weights, certificate, seed, max_batches, min_inputs,
            include=tuple(include or ()), exclude=tuple(exclude or ()), latency=latency,
        )  # fmt: skip
    path = result.save(out)
    if as_json:
        typer.echo(json.dumps({"out": str(path), "compaction": result.to_dict()}, indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        console.print(result)
        console.print(f"Saved: [bold]{path}[/]", soft_wrap=True)


def _made(
    model: str,
    data: str | None,
    weights: Path | None,
    certificate: Path | None,
    seed: int,
    max_batches: int | None,
    min_inputs: int,
    **options: Any,
) -> Any:
    import torch

    from relume.check.loading import Target, blamed, load_batches, load_model
    from relume.check.weights import load_weights
    from relume.prove.certify import Certificate
    from relume.prove.compact import compact as compacted
    from relume.watch import census

    torch.manual_seed(seed)
    module = load_model(Target.find(model, "the model"))
    if weights is not None:
        load_weights(module, weights)
    batches = None
    if data is not None:
        found = load_batches(Target.find(data, "--data"), max_batches)
        batches = found if isinstance(found, torch.Tensor) else list(found)  # read once, used for census and proof
    with blamed(f"running {model} on {data or 'points of the box'}"):
        evidence: Any
        if certificate is not None:
            evidence = Certificate.load(certificate)
        else:
            evidence = census(module, batches if batches is not None else [], min_inputs=min_inputs)
        return compacted(module, evidence, batches, **options)
