"""`relume certify`: which units of a trained model can't fire on any input of a box, with an exit code for CI."""

from __future__ import annotations

import contextlib
import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


class Method(str, Enum):
    ibp = "ibp"
    crown = "crown"


def certify(
    model: Annotated[str, typer.Argument(help="MODULE:NAME or FILE.py:NAME of a module, or of what makes one.")],
    data: Annotated[
        str | None, typer.Option(help="MODULE:NAME of a DataLoader, tensor or batches: their smallest box.")
    ] = None,
    lower: Annotated[float | None, typer.Option(help="Lower end of the box, for all elements.")] = None,
    upper: Annotated[float | None, typer.Option(help="Upper end of the box, for all elements.")] = None,
    shape: Annotated[str | None, typer.Option(help="One input's shape, such as 1,28,28, without data.")] = None,
    margin: Annotated[float, typer.Option(min=0, help="Added to the data's box on each side.")] = 0.0,
    weights: Annotated[Path | None, typer.Option(help="State dict by torch.save, or a .safetensors file.")] = None,
    method: Annotated[Method, typer.Option(help="Of bounding: crown is tighter and takes longer.")] = Method.ibp,
    witnesses: Annotated[bool, typer.Option(help="Search inputs on which open units fire.")] = True,
    max_batches: Annotated[int | None, typer.Option(min=1, help="Take no more batches than this.")] = None,
    seed: Annotated[int, typer.Option(help="Of torch, before model and data are made, and of samples.")] = 0,
    fail_over: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fail when a larger share of all units is certified dead.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the certificate as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Prove which units of a trained model are dead, or linear, on every input of a box.

    The box is that of --data, or --lower and --upper with the shape of --shape or of the data. Imports the modules that
    are named, so what they do when imported is done. Exit code: 0 fine, 1 over the limit, 2 error.
    """
    from relume import check
    from relume.check.loading import InputError, Target, blamed, load_batches, load_model
    from relume.check.weights import load_weights
    from relume.prove.certify import box
    from relume.prove.certify import certify as prove

    if data is None and (lower is None or upper is None or shape is None):
        raise InputError("a box is needed: --data, or --lower, --upper and --shape")
    import torch

    with contextlib.redirect_stdout(sys.stderr):
        torch.manual_seed(seed)
        module = load_model(Target.find(model, "the model"))
        if weights is not None:
            load_weights(module, weights)
        low: torch.Tensor | float | None = lower
        high: torch.Tensor | float | None = upper
        sizes = _sizes(shape)
        if data is not None:
            batches = load_batches(Target.find(data, "--data"), max_batches)
            with blamed(f"finding the box of {data}"):
                ends = box(batches, margin)
            low, high = ends[0] if lower is None else lower, ends[1] if upper is None else upper
            sizes = tuple(ends[0].shape) if sizes is None else sizes
        assert low is not None
        assert high is not None
        with blamed(f"certifying {model}"):
            found = prove(
                module, low, high, shape=sizes, method=method.value, witnesses=witnesses, seed=seed
            )  # fmt: skip
    share = found.dead / found.units
    failed = fail_over is not None and share > fail_over
    data_out = found.to_dict()
    if out is not None:
        check.write(out, json.dumps(data_out, ensure_ascii=False))
    if as_json:
        typer.echo(json.dumps({"passed": not failed, "certificate": data_out}, indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        console.print(found)
        for note in found.notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        if failed:
            text = f"failed: {found.dead:,} of {found.units:,} units are certified dead, limit {fail_over:.1%}"
            console.print(text, style="red", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _sizes(text: str | None) -> tuple[int, ...] | None:
    from relume.check.loading import InputError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(",") if part.strip())
    except ValueError:
        raise InputError(
            f"--shape takes whole numbers with commas between them, such as 1,28,28, not {text!r}"
        ) from None
